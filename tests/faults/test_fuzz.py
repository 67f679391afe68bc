"""Mutated settings and mutated data files: each gives a sentence of ours, or a job or an example that is right.

pytest -m slow -n 0 tests/faults/test_fuzz.py
"""

import collections
import copy
import json
import os
import random
import shutil
import sys
import tarfile
import traceback
from pathlib import Path

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from absl import flags
from ml_collections import config_flags

from loong_jax.command_line import explain
from loong_jax.config import DataConfig, LanguageModelJob, TokenizerJob
from loong_jax.config_dict import from_config_dict, load_job, to_json_dict
from loong_jax.data.clip_builder import write_clips
from loong_jax.data.sources import make_source
from loong_jax.data.token_cache import CacheMeta, TokenCache, TokenCacheWriter, TokenExample
from loong_jax.models import transformer
from loong_jax.sharding import make_mesh
from loong_jax.tokenizer import autoencoder
from loong_jax.training.lm_job import row_length
from loong_jax.training.lm_step import create_model_state
from loong_jax.training.optimizer import make_optimizer
from loong_jax.training.tokenizer_step import create_tokenizer_state

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from media import encode_image, encode_video  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
ROOT = Path(__file__).parents[2]
PACKAGE = str(ROOT / "loong_jax")
NUM_CASES = int(os.environ.get("FUZZ_CASES", 2000))
NUMBERS = [0, -1, 1, 2, 3, 7, 2**31, -(2**31), 2**63, 10**30, 0.5, -0.5, 1e-300, 1e300]
ODD = [*NUMBERS, float("nan"), float("inf"), "", " ", "x", "\0", "é\u202e", "a" * 5000, "folder:", "3*folder:/x|"]
ODD += [None, True, False, [], {}, (), [1], [1.5], ["a"], {"a": 1}, [[1]], "7", "1e9", "-1", "tokens:x", "auto"]


def assert_ours(error: Exception, what: str) -> None:
    """The error is a sentence for the user, made in the package."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    told = "".join(traceback.format_exception(error)[-4:])
    assert isinstance(error, ValueError) and last.filename.startswith(PACKAGE), f"{what}\n{told}"
    message = str(error)
    assert message and message[0] != "{" and "\n" not in message.strip(), f"{what}: {message!r}"


def groups(values: dict) -> list[dict]:
    """A job's settings and all groups of them inside."""
    return [values] + [one for value in values.values() if isinstance(value, dict) for one in groups(value)]


def mutated_settings(values: dict, rng: random.Random) -> dict:
    values = copy.deepcopy(values)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        group = rng.choice(groups(values))
        name = rng.choice(sorted(group)) if group else "x"
        old = group.get(name)
        match rng.randrange(6):
            case 0:
                group.pop(name, None)
            case 1:
                group[name[:-1] + rng.choice("_xY ")] = group.pop(name, 0)
            case 2 if type(old) in (int, float):
                factors = (2, 3, 0.5, 10, -1, 1.5)
                new = old * rng.choice(factors)
                group[name] = int(new) if type(old) is int else float(new)
            case 3:
                group[name] = copy.deepcopy(rng.choice(list(rng.choice(groups(values)).values()) or [0]))
            case _:
                group[name] = copy.deepcopy(rng.choice(ODD))
    return values


EXPERIMENTS = ["stage1:debug", "stage2:debug", "stage3:debug", "tokenizer:debug", "tokenizer:small,gan", "sample"]
EXPERIMENTS += ["demo", "tokenize:debug", "evaluate:debug", "check_data:debug", "estimate:debug", "doctor:debug"]


def build_abstractly(job) -> None:
    """As far as a training comes without an array."""
    if isinstance(job, (TokenizerJob, LanguageModelJob)) and job.train.batch_size % jax.device_count():
        return  # rows are checked where the first batch is placed
    if isinstance(job, TokenizerJob):
        optimizer = make_optimizer(job.optimizer, job.train.num_steps, autoencoder.matrix_axes)
        create_tokenizer_state(job, optimizer, make_mesh(job.mesh), is_abstract=True)
    if isinstance(job, LanguageModelJob):
        row_length(job, job.tokenizer)
        optimizer = make_optimizer(job.optimizer, job.train.num_steps, transformer.matrix_axes)
        create_model_state(job, optimizer, make_mesh(job.mesh), is_abstract=True)


def test_settings():
    rng = random.Random(0)
    originals = [to_json_dict(load_job(ROOT / "configs", name)) for name in EXPERIMENTS]
    outcomes = collections.Counter()
    for case in range(NUM_CASES):
        values = mutated_settings(originals[case % len(originals)], rng)
        what = f"case {case}: {json.dumps(values, default=str)[:3000]}"
        try:
            job = from_config_dict(values)
        except Exception as error:
            assert_ours(error, what)
            outcomes["refused"] += 1
            continue
        assert from_config_dict(json.loads(json.dumps(to_json_dict(job)))) == job, what
        outcomes["a job"] += 1
        if case % 4 == 0 and isinstance(job, (TokenizerJob, LanguageModelJob)):
            try:
                build_abstractly(job)
                outcomes["built"] += 1
            except Exception as error:
                assert_ours(error, what)
                outcomes["refused late"] += 1
    assert outcomes["refused"] > NUM_CASES / 4 and outcomes["a job"] > NUM_CASES / 10 and outcomes["built"] > 10, (
        outcomes
    )


def mutated_arguments(jobs: dict, rng: random.Random) -> list[str]:
    """A command: a config, mostly one that is there, and settings, mostly of its own, of which some are possible."""
    name = (
        rng.choice(sorted(jobs)) if rng.random() < 0.95 else rng.choice(["absent", "", "stage1:x", "../configs/demo"])
    )
    file, colon, variant = name.partition(":")
    arguments = [f"--config=configs/{file}.py{colon}{variant}", "--workdir=w"]
    own = jobs.get(name) or jobs["demo"]
    fields = {f"{prefix}{field}": value for prefix, group in _named_groups(own) for field, value in group.items()}
    for _ in range(rng.randrange(1, 3)):
        field = rng.choice(sorted(fields))
        value = rng.choice(ODD) if rng.random() < 0.5 else fields[field]
        if rng.random() < 0.2:
            place = rng.randrange(len(field))
            field = field[:place] + rng.choice(["", ".", "x", "[0]", "é", "=", "("]) + field[place + 1 :]
        forms = ["--config.{}={}"] * 8 + ["-config.{}={}", "--noconfig.{}", "--config.{}", "--{}={}"]
        arguments.append(rng.choice(forms).format(field, value))
    if rng.random() < 0.1:
        rng.shuffle(arguments)
    return [argument.replace("\0", "") for argument in arguments]


def _named_groups(values: dict, prefix: str = ""):
    yield prefix, values
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _named_groups(value, f"{prefix}{name}.")


def test_command_lines(monkeypatch):
    monkeypatch.chdir(ROOT)
    rng = random.Random(1)
    outcomes = collections.Counter()
    jobs = {name: to_json_dict(load_job(ROOT / "configs", name)) for name in EXPERIMENTS}
    for case in range(NUM_CASES // 2):
        arguments = mutated_arguments(jobs, rng)
        found = flags.FlagValues()
        argv = ["main", *arguments]
        config = config_flags.DEFINE_config_file("config", None, flag_values=found, sys_argv=argv)
        flags.DEFINE_string("workdir", None, "", flag_values=found)
        try:
            found(argv)
            config.value.to_dict()
        except Exception as error:
            message = explain(arguments, error)
            assert message and "\n" not in message and "Traceback" not in message, (case, arguments, message)
            outcomes["refused"] += 1
            continue
        try:
            from_config_dict(config.value)
            outcomes["a job"] += 1
        except Exception as error:
            assert_ours(error, f"case {case}: {arguments}")
            outcomes["refused"] += 1
    assert min(outcomes["refused"], outcomes["a job"]) > 50, outcomes


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(content) + 1)
        match rng.randrange(6):
            case 0:
                content = content[:place]
            case 1:
                content[place : place + 1] = bytes([rng.randrange(256)])
            case 2:
                content[place:place] = rng.randbytes(rng.randrange(1, 40))
            case 3:
                content[place : place + rng.randrange(1, 40)] = b""
            case 4:
                other = rng.randrange(len(content) + 1)
                content[place : place + 16] = content[other : other + 16]
            case 5:
                odd = [
                    b"\xff" * 8,
                    b"\0" * 8,
                    b"NaN",
                    b"1e999",
                    b"null",
                    b"-1",
                    b"[[[[",
                    b'"',
                    b"\n",
                    b"9" * 30,
                    b"../",
                ]
                content[place : place + rng.choice((0, 4))] = rng.choice(odd)
    return bytes(content)


def folder_of_clips(root: Path) -> str:
    for index in range(3):
        (root / f"{index}.mp4").write_bytes(encode_video(6, 9 * index))
    rows = [{"file_name": f"{index}.mp4", "caption": f"clip {index}"} for index in range(3)]
    (root / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"folder:{root}"


def folder_with_csv(root: Path) -> str:
    folder_of_clips(root)
    (root / "captions.jsonl").unlink()
    (root / "captions.csv").write_text("file_name,caption\n" + "".join(f'{i}.mp4,"clip {i}"\n' for i in range(3)))
    return f"folder:{root}"


def list_of_cuts(root: Path) -> str:
    folder_of_clips(root)
    (root / "captions.jsonl").unlink()
    rows = [{"video": f"{i}.mp4", "start": 0.0, "stop": "00:00.7", "caption": f"cut {i}"} for i in range(3)]
    (root / "cuts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"cut_list:{root / 'cuts.jsonl'}"


def tar_shards(root: Path) -> str:
    with tarfile.open(root / "00000.tar", "w") as tar:
        for index in range(3):
            content = {"png": encode_image(index), "txt": b"text", "json": b'{"caption": "c", "key": "1"}'}
            for kind in ("png", "txt") if index else ("png", "json"):
                file = root / f"{index:05d}.{kind}"
                file.write_bytes(content[kind])
                tar.add(file, file.name)
                file.unlink()
    return f"web_shards:{root}"


def parquet_shards(root: Path) -> str:
    table = {"jpg": [encode_image(i) for i in range(3)], "caption": ["a", "b", None], "key": ["1", "2", "3"]}
    pyarrow.parquet.write_table(pyarrow.table(table), root / "00000.parquet", row_group_size=2)
    return f"web_shards:{root}"


def data_set(root: Path) -> str:
    for index in range(3):
        (root / f"{index}.mp4").write_bytes(encode_video(6, 9 * index))
    clips = [(f"clip {index}", "caption", str(root / f"{index}.mp4")) for index in range(3)]
    folder = write_clips(root / "set", train=[(name, path, caption) for name, caption, path in clips])
    for index in range(3):
        (root / f"{index}.mp4").unlink()
    return f"tfds:{folder}"


SOURCES = [folder_of_clips, folder_with_csv, list_of_cuts, tar_shards, parquet_shards, data_set]


def files_of(root: Path) -> list[Path]:
    return sorted(file for file in root.rglob("*") if file.is_file())


@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)
def test_files_of_sources(make, tmp_path):
    """One file of each source at a time; captions and tables more often than the media in them."""
    rng, outcomes = random.Random(make.__name__), collections.Counter()
    source = make(tmp_path)
    kinds = {file: file.read_bytes() for file in files_of(tmp_path)}
    tables = [file for file in kinds if file.suffix != ".mp4"]
    for case in range(NUM_CASES // 8):
        file = rng.choice(tables if rng.random() < 0.9 else list(kinds))
        # Indices of shards are kept by path: a place of its own for each case.
        place = tmp_path.parent / f"case_{make.__name__}_{case}"
        shutil.copytree(tmp_path, place)
        (place / file.relative_to(tmp_path)).write_bytes(mutated_bytes(kinds[file], rng))
        what = f"case {case} of {file.name}"
        data = DataConfig(source=source.replace(str(tmp_path), str(place)), frame_size=16, num_frames=1, fps=6.5)
        try:
            clips = make_source(data, "train", num_examples=3)
            for index in range(3):
                example = clips[index]
                assert example["video"].shape == (1, 16, 16, 3) and example["video"].dtype == np.uint8, what
                assert isinstance(example["caption"], str) and isinstance(example["key"], str), what
            outcomes["read"] += 1
        except Exception as error:
            assert_ours(error, what)
            outcomes["refused"] += 1
        shutil.rmtree(place)
    assert outcomes["read"] > 0 and sum(outcomes.values()) == NUM_CASES // 8, outcomes


def test_token_shards(tmp_path):
    meta = CacheMeta("f" * 8, "t" * 8, {"source": "x", "split": "train"}, 6, (2, 2, 2), 64, 6.5, shard_size=4)
    writer = TokenCacheWriter(tmp_path / "original", meta)
    rng = random.Random(2)
    for shard, indices in writer.missing_shards():
        examples = [TokenExample(np.full(meta.grid, index, np.int32), [1, 2, index], f"k{index}") for index in indices]
        writer.write(shard, examples)
    contents = {file.name: file.read_bytes() for file in files_of(tmp_path / "original")}
    outcomes = collections.Counter()
    for case in range(NUM_CASES // 4):
        place = tmp_path / str(case)
        place.mkdir()
        chosen = rng.choice(sorted(contents))
        for name, content in contents.items():
            (place / name).write_bytes(mutated_bytes(content, rng) if name == chosen else content)
        what = f"case {case} of {chosen}"
        try:
            cache = TokenCache(place)
            for index in range(len(cache)):
                example = cache[index]
                codes, text = example["codes"], example["text_ids"]
                assert codes.shape == cache.meta.grid and 0 <= codes.min() <= codes.max() < cache.meta.num_codes, what
                assert isinstance(text, list) and all(type(i) is int and i >= 0 for i in text), what
                assert isinstance(example["key"], str), what
            outcomes["read"] += 1
        except Exception as error:
            assert_ours(error, what)
            outcomes["refused"] += 1
        shutil.rmtree(place)
    assert outcomes["read"] > 0 and outcomes["refused"] > NUM_CASES / 20, outcomes
