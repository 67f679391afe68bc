"""A model that was exported is the same model; what is missing, damaged or mixed up is said."""

import dataclasses
import json
import sys
import types

import jax
import numpy as np
import pytest

import loong_jax
from loong_jax import pipeline
from loong_jax.config import DEBUG_TOKENIZER, DEBUG_TRANSFORMER, DataConfig, ExportJob, LanguageModelJob, SamplingConfig
from loong_jax.data.text import TextTokenizer
from loong_jax.export import run_export
from loong_jax.model_folder import write_model
from loong_jax.models import transformer
from loong_jax.pipeline import Pipeline
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer

JOB = LanguageModelJob(
    model=dataclasses.replace(DEBUG_TRANSFORMER, max_length=128),
    data=DataConfig(frame_size=32, num_frames=17, max_text_ids=8),
    sampling=SamplingConfig(seconds=2.0, top_k=7),
)
PROMPT = "a red 7 moves left"
FILES = {"config.json", "language_model.safetensors", "tokenizer.json", "tokenizer.safetensors"}


@pytest.fixture(scope="module")
def pipe():
    params = jax.jit(lambda key: transformer.init_params(JOB.model, key))(jax.random.key(0))
    params = jax.tree.map(lambda p: p if p.ndim == 1 else 10 * p, params)
    tokenizer = VideoTokenizer.untrained(DEBUG_TOKENIZER)
    return Pipeline(JOB, params, VideoTokenizer(tokenizer.config, tokenizer.params, frame_size=32))


@pytest.fixture(scope="module")
def exported(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    write_model(folder, pipe.job, pipe.params, pipe.generator.tokenizer)
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    """A copy that a test may damage."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in exported.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def rows_of(params) -> dict:
    """Parameters without the padding of the tables, which no id reaches."""
    size = JOB.model.vocab_size
    return params | {"embedding": params["embedding"][:size], "head": params["head"][:, :size]}


def test_what_is_loaded_is_what_was_written(pipe, exported):
    again = loong_jax.load(exported)
    assert {file.name for file in exported.iterdir()} == FILES
    assert again.job == JOB and again.sampling.top_k == 7 and again.generator.tokenizer.frame_size == 32
    jax.tree.map(np.testing.assert_array_equal, rows_of(again.params), rows_of(pipe.params))
    assert again.generator.tokenizer.fingerprint == pipe.generator.tokenizer.fingerprint
    assert pipeline.load_tokenizer(exported).fingerprint == pipe.generator.tokenizer.fingerprint
    np.testing.assert_array_equal(again(PROMPT, seed=3, seconds=1), pipe(PROMPT, seed=3, seconds=1))


def test_an_export_leaves_out_what_it_is_told_to(pipe, exported, tmp_path):
    (tmp_path / "texts.txt").write_text(f"{PROMPT}\na blue 3\n")
    (tmp_path / "results.json").write_text(json.dumps({"benchmark": {"digit": 0.875}, "ok": True}))
    job = ExportJob(
        model_path=str(exported),
        dtype="bfloat16",
        texts_file=str(tmp_path / "texts.txt"),
        results=str(tmp_path / "results.json"),
        command="python train.py",
    )
    made = run_export(job, tmp_path / "out")
    assert {file.name for file in made.iterdir()} == FILES | {"README.md"}
    again = loong_jax.load(made).params
    known = np.isin(np.arange(JOB.model.num_text_ids), TextTokenizer().encode(f"{PROMPT}\na blue 3".replace("\n", " ")))
    known = np.concatenate([known, np.ones(JOB.model.vocab_size - len(known), bool)])
    embedding = np.asarray(rows_of(again)["embedding"])
    right = np.asarray(pipe.params["embedding"][: len(known)].astype("bfloat16").astype("float32"))
    np.testing.assert_array_equal(embedding[known], right[known])
    assert not embedding[~known].any() and known.sum() < 600
    small, large = ((path / "language_model.safetensors").stat().st_size for path in (made, exported))
    assert small < large / 20
    card = (made / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n") and "| benchmark digit | 0.875 |" in card
    assert "`python train.py`" in card and "top_k: 7" in card and "| ok" not in card

    # A model that knows some texts still says so when it is exported again, and knows no more for a longer list.
    for more in ({}, {"texts_file": str(tmp_path / "texts.txt")}):
        (tmp_path / "texts.txt").write_text(f"{PROMPT}\na blue 3\nan unknown zebra\n")
        twice = run_export(ExportJob(model_path=str(made), **more), tmp_path / "twice")
        assert loong_jax.load(twice).known_text_ids == loong_jax.load(made).known_text_ids


def test_to_llama_and_back(pipe, exported, tmp_path):
    llama = run_export(ExportJob(model_path=str(exported), format="llama"), tmp_path)
    assert {file.name for file in llama.iterdir()} == {"config.json", "model.safetensors"}
    assert json.loads((llama / "config.json").read_text())["vocab_size"] == JOB.model.vocab_size
    back = run_export(ExportJob(model_path=str(exported), llama_weights=str(llama)), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, rows_of(loong_jax.load(back).params), rows_of(pipe.params))
    with pytest.raises(ValueError, match="There are no safetensors in .*nothing: give the folder"):
        run_export(ExportJob(model_path=str(exported), llama_weights=str(tmp_path / "nothing")), tmp_path / "x")


def test_a_saved_tokenizer_stands_alone(pipe, tmp_path):
    pipe.generator.tokenizer.save(tmp_path)
    video = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    loaded = VideoTokenizer.load(tmp_path)
    np.testing.assert_array_equal(loaded.encode(video), pipe.generator.tokenizer.encode(video))


def test_a_rounded_decoder_leaves_the_ids(pipe, tmp_path):
    whole = pipe.generator.tokenizer
    said = whole.save(tmp_path, "float16")
    small = VideoTokenizer.load(tmp_path)
    assert small.fingerprint == said != whole.fingerprint
    for part in ("encoder", "quantizer"):
        jax.tree.map(np.testing.assert_array_equal, small.params[part], whole.params[part])
    right = jax.tree.map(lambda x: np.asarray(x).astype(np.float16).astype(np.float32), whole.params["decoder"])
    jax.tree.map(np.testing.assert_array_equal, small.params["decoder"], right)


def test_whoever_may_read_the_folder_may_read_its_files(exported):
    allowed = exported.stat().st_mode & 0o666
    assert all(file.stat().st_mode & 0o666 == allowed for file in exported.glob("*.safetensors"))


def change(**changes):
    def damage(folder):
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | changes))

    return damage


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1000])


def other_tokenizer(folder):
    VideoTokenizer.untrained(DEBUG_TOKENIZER, seed=1).save(folder)


def turned_bit(folder):
    content = bytearray((folder / "tokenizer.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "tokenizer.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda folder: (folder / "config.json").unlink(), "There is no .*config.json: the model folder is not whole"),
        (lambda folder: (folder / "tokenizer.safetensors").unlink(), "There is no .*tokenizer.safetensors: the model"),
        (cut("config.json"), "config.json does not describe a model"),
        (cut("language_model.safetensors"), "language_model.safetensors cannot be read .*copy or export it again"),
        (cut("tokenizer.json"), "tokenizer.json does not describe a tokenizer|is not possible"),
        (change(format="loong_jax 99"), "config.json is of 'loong_jax 99', and this version .* reads 'loong_jax 1'"),
        (change(job={"task": "doctor"}), "reads 'loong_jax 1'"),
        (change(text_ids=[3, 4]), r"language_model.safetensors embedding is \(.*, and the model that config.json"),
        (change(text_ids=[3, 10**6]), "config.json does not describe a model .*text_ids"),
        (change(text_ids="all"), "config.json does not describe a model .*text_ids"),
        (change(text_tokenizer_fingerprint="1"), "reads texts with tokenizer 1, and this version"),
        (other_tokenizer, "was trained on ids of tokenizer .* export the model again"),
        (turned_bit, "do not belong together, or one is damaged"),
    ],
)
def test_damage_is_said(folder, damage, said):
    damage(folder)
    with pytest.raises(ValueError, match=said):
        loong_jax.load(folder)


@pytest.fixture
def hub(monkeypatch, exported):
    calls = []

    class HfApi:
        def create_repo(self, name, **options):
            calls.append((name, options))

        def upload_folder(self, **options):
            calls.append(options)

    def snapshot_download(name, allow_patterns):
        if name != "some/model":
            raise OSError("404 Client Error.\nmore")
        return str(exported)

    fake = types.SimpleNamespace(HfApi=HfApi, snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return calls


def test_the_hub(hub, pipe, tmp_path):
    assert loong_jax.load("hf:some/model").fingerprint == pipe.fingerprint
    with pytest.raises(ValueError, match=r"hf:an/other cannot be fetched: 404 Client Error\.$"):
        loong_jax.load("hf:an/other")
    with pytest.raises(ValueError, match="hf:other is not possible: write hf:OWNER/NAME"):
        loong_jax.load("hf:other")
    run_export(ExportJob(model_path="hf:some/model", upload="my/model"), tmp_path)
    assert hub[0] == ("my/model", {"private": True, "exist_ok": True})
    assert hub[1]["repo_id"] == "my/model" and hub[1]["folder_path"] == tmp_path / "model"


def test_the_hub_without_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r'pip install "loong_jax\[hub\]"'):
        loong_jax.load("hf:some/model")
