"""The mesh chooser: what it takes, what it says when nothing fits, and that what it says then helps."""

import dataclasses
import re

import jax
import pytest

from loong_jax import sharding
from loong_jax.config import (
    DEBUG_TOKENIZER,
    DEBUG_TRANSFORMER,
    TRANSFORMER_PRESETS,
    ConfigError,
    DataConfig,
    LanguageModelJob,
    MeshConfig,
    TokenizerJob,
    TrainConfig,
)
from loong_jax.models import transformer
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.training import lm_job, tokenizer_job
from loong_jax.training.mesh_choice import Devices, Shapes, choose_mesh, present_devices

LENGTH, GIB = 4608, 2**30


def shapes(size: str, batch_size: int, remat: str = "full") -> Shapes:
    return Shapes(dataclasses.replace(TRANSFORMER_PRESETS[size], remat=remat), batch_size, LENGTH)


def devices(count: int, gib: float, num_slices: int = 1) -> Devices:
    return Devices(count, int(gib * GIB), num_slices)


@pytest.mark.parametrize(
    ("given", "there", "expected"),
    [
        # One axis is enough where the batch has a row for each device.
        (shapes("700m", 1), devices(1, 141), MeshConfig(fsdp=1)),
        (shapes("700m", 8), devices(8, 16), MeshConfig(fsdp=8)),
        (shapes("3b", 8), devices(8, 16), MeshConfig(fsdp=8)),
        (shapes("7b", 64), devices(64, 95), MeshConfig(fsdp=64)),
        (shapes("7b", 256), devices(256, 16), MeshConfig(fsdp=256)),
        # 1,536 dimensions go into 512 parts, not into 1,024.
        (shapes("700m", 1024), devices(1024, 16), MeshConfig(data=2, fsdp=512)),
        # Fewer rows than devices: heads are cut, up to a host's eight devices; then the length.
        (shapes("7b", 64), devices(256, 16), MeshConfig(fsdp=64, tensor=4)),
        (shapes("700m", 1), devices(16, 16), MeshConfig(fsdp=1, sequence=2, tensor=8)),
        # Data parallelism, which talks least, runs across slices.
        (shapes("3b", 512), devices(512, 16, 2), MeshConfig(data=2, fsdp=256)),
        (shapes("3b", 64), devices(512, 32, 4), MeshConfig(data=4, fsdp=16, tensor=8)),
        # More of the sequence's parts, where remat keeps too much otherwise.
        (shapes("7b", 64, "none"), devices(256, 16), MeshConfig(fsdp=64, sequence=2, tensor=2)),
    ],
)
def test_the_mesh_for(given, there, expected):
    assert choose_mesh(given, there).mesh == expected


@pytest.mark.parametrize(
    ("given", "there", "said"),
    [
        (shapes("700m", 1), devices(1, 16), r"1 devices fits.*14\.\d+ GiB on each.*90% of 16.00 GiB.*use 2 devices\.$"),
        (shapes("3b", 8, "none"), devices(8, 16), r"use --config.model.remat=full or 32 devices\.$"),
        (shapes("3b", 64), devices(8, 16), r"8 fsdp with.*use --config.train.batch_size=24 or 16 devices\.$"),
        (shapes("7b", 1), devices(1, 16), r"smaller model, or devices with more memory\.$"),
        (shapes("700m", 9), devices(7, 32), r"No mesh of 7 devices divides a batch of 9 rows.*batch_size=7\.$"),
    ],
)
def test_a_refusal_says_what_is_missing_and_what_would_help(given, there, said):
    with pytest.raises(ConfigError, match=said) as error:
        choose_mesh(given, there)
    message = str(error.value)
    assert "\n" not in message
    helped = [
        (given, dataclasses.replace(there, count=int(count))) for count in re.findall(r"(\d+) devices\.$", message)
    ]
    batches = re.findall(r"batch_size=(\d+)", message)
    helped += [(dataclasses.replace(given, batch_size=int(size)), there) for size in batches]
    if "remat=full" in message:
        helped += [(dataclasses.replace(given, model=dataclasses.replace(given.model, remat="full")), there)]
    for better in helped:
        choose_mesh(*better)


@pytest.mark.parametrize("size", TRANSFORMER_PRESETS)
def test_the_state_is_that_of_the_parameters(size):
    """16 bytes for each parameter and moment and gradient, 2 for the copy to compute with, cut over fsdp."""
    _, abstract = transformer.abstract_params(TRANSFORMER_PRESETS[size])
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract))
    assert choose_mesh(shapes(size, 8), devices(8, 95)).state == pytest.approx(18 * count / 8, rel=1e-3)


def test_the_compiler_agrees():
    """libtpu 0.0.42.1 gives the step on 8 chips of v5e, a row of 1,280 ids each, 1.23 + 0.92 GiB."""
    model = dataclasses.replace(TRANSFORMER_PRESETS["700m"], remat="full")
    needs = choose_mesh(Shapes(model, 8, 1280), devices(8, 16))
    assert needs.mesh == MeshConfig(fsdp=8)
    assert needs.total / GIB == pytest.approx(1.23 + 0.92, rel=0.1)


def test_the_devices_of_this_machine():
    there = present_devices()
    assert (there.count, there.num_slices) == (8, 1)
    assert 2**28 < there.memory < 2**44


def test_a_number_of_slices_goes_with_a_chosen_mesh():
    LanguageModelJob(choose_mesh=True, mesh=MeshConfig(num_slices=2))


@pytest.mark.parametrize(
    ("mesh", "batch_size", "said"),
    [
        ({"fsdp": 8}, 12, r"=12 cannot be cut into 8 parts.*batch_size=16, or.*data=1 .*fsdp=4 .*tensor=-1$"),
        ({"data": 2, "fsdp": 4}, 3, r"=3 cannot be cut into 8 parts.*batch_size=8, or.*fsdp=1 .*tensor=-1$"),
    ],
)
def test_rows_that_a_mesh_cannot_cut(mesh, batch_size, said, make_mesh):
    """Either of the settings that it names helps, with as many devices."""
    mesh = make_mesh(**mesh)
    with pytest.raises(ConfigError) as error:
        sharding.check_batch(mesh, batch_size)
    message = str(error.value).rstrip(".")
    assert re.search(said, message) and "\n" not in message
    sharding.check_batch(mesh, int(re.search(r"batch_size=(\d+), or", message)[1]))
    sizes = {name: int(size) for name, size in re.findall(r"--config.mesh.(\w+)=(-?\d+)", message)}
    sharding.check_batch(sharding.make_mesh(MeshConfig(**sizes)), batch_size)


def test_single_frames_of_the_tokenizer_are_of_the_image_source(monkeypatch, tmp_path):
    asked = []

    def make_source(data, split, *, source="", num_frames=None, bad_list=None):
        asked.append((split, source or data.source, num_frames or data.num_frames))

    monkeypatch.setattr(tokenizer_job, "make_source", make_source)
    monkeypatch.setattr(tokenizer_job, "video_batches", lambda *_, **__: 1 / 0)
    data = DataConfig(image_source=f"folder:{tmp_path}", image_share=0.5)
    with pytest.raises(ZeroDivisionError):
        tokenizer_job.train_tokenizer(TokenizerJob(data=data, train=TrainConfig(batch_size=8)), tmp_path)
    digits = "moving_digits"
    assert asked == [("train", digits, 17), ("test", digits, 17), ("train", f"folder:{tmp_path}", 1)]


def test_what_a_mesh_cannot_cut_is_said_before_anything_is_read(monkeypatch, tmp_path):
    def read(*_, **__):
        raise AssertionError("the data were read")

    monkeypatch.setattr(lm_job, "_batches", read)
    monkeypatch.setattr(lm_job, "find_tokenizer", lambda job, workdir: VideoTokenizer(DEBUG_TOKENIZER, {}, 32))
    monkeypatch.setattr(tokenizer_job, "make_source", read)
    train = TrainConfig(batch_size=12)
    with pytest.raises(ConfigError, match=r"batch_size=12 cannot be cut into 8 parts.*tensor=-1\.$"):
        tokenizer_job.train_tokenizer(TokenizerJob(train=train), tmp_path)
    model = dataclasses.replace(DEBUG_TRANSFORMER, max_length=2048)
    job = LanguageModelJob(tokenizer=DEBUG_TOKENIZER, model=model, train=train)
    with pytest.raises(ConfigError, match=r"batch_size=12 cannot be cut into 8 parts.*or --config.choose_mesh=True"):
        lm_job.train_language_model(job, tmp_path)
    in_parts = dataclasses.replace(job, train=TrainConfig(batch_size=16), accumulate=8)
    with pytest.raises(ConfigError, match=r"2 rows of train.batch_size=16 at.* 8 parts.*--config.accumulate=2\.$"):
        lm_job.train_language_model(in_parts, tmp_path)
    by_heads = dataclasses.replace(job, mesh=MeshConfig(fsdp=1, tensor=8))
    with pytest.raises(ConfigError, match="cannot be cut into 8 along"):
        lm_job.train_language_model(by_heads, tmp_path)
