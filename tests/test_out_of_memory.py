"""Where memory runs out: what was asked, and settings that help by the same estimate; one sentence and exit code 2."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from loong_jax import out_of_memory
from loong_jax.config import (
    TRANSFORMER_PRESETS,
    DataConfig,
    DemoJob,
    LanguageModelJob,
    MeshConfig,
    SampleJob,
    TokenizerJob,
    TrainConfig,
)
from loong_jax.training.mesh_choice import Devices

ROOT = Path(__file__).parents[1]
GIB = 2**30
ALLOCATING = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 603979776 bytes.\nat line 3")
OF_A_TPU = RuntimeError(
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded"
)


def job(size="700m", batch_size=64, remat="none", **changed) -> LanguageModelJob:
    model = dataclasses.replace(TRANSFORMER_PRESETS[size], remat=remat, compute_dtype="bfloat16")
    data, train = DataConfig(num_frames=17), TrainConfig(batch_size=batch_size)
    return LanguageModelJob(tokenizer_path="none", model=model, data=data, train=train, **changed)


@pytest.fixture
def explain(monkeypatch, tmp_path):
    """What is said on eight devices of some GiB."""

    def call(job, gib=16.0, error=ALLOCATING) -> str:
        monkeypatch.setattr(out_of_memory, "present_devices", lambda: Devices(8, int(gib * GIB)))
        message = out_of_memory.explain(job, tmp_path, error)
        assert message.startswith("Memory ran out in ") and message.endswith(".") and "\n" not in message
        return message

    return call


def test_what_counts_as_out_of_memory():
    for error in (ALLOCATING, OF_A_TPU, MemoryError(), RuntimeError("INTERNAL: Out of memory allocating 9 bytes.")):
        assert out_of_memory.is_out_of_memory(error)
    for error in (RuntimeError("INVALID_ARGUMENT"), ValueError("out of memory"), KeyError("x")):
        assert not out_of_memory.is_out_of_memory(error)


def test_less_is_kept_before_fewer_rows_are_asked_for(explain):
    message = explain(job())
    assert "64 rows of 1,360 ids on a mesh of 8 fsdp with about" in message
    assert "Out of memory allocating 603979776 bytes" in message
    found = re.findall(r"(--config\S+) \(about ([\d.]+) GiB\)", message)
    assert [flag for flag, _ in found] == [
        "--config.model.remat=full",
        "--config.accumulate=2",
        "--config.train.batch_size=32",
    ]
    assert all(float(gib) <= 0.9 * 16 for _, gib in found)


def test_rows_that_are_one_a_device_already(explain):
    assert "--config.model.remat=full" in explain(job(batch_size=8), gib=3.0)
    assert explain(job("7b", batch_size=8, remat="full")).endswith("use more devices, or a smaller model.")


def test_a_mesh_that_cuts_the_parameters(explain):
    message = explain(job("3b", batch_size=8, remat="full", mesh=MeshConfig(data=8, fsdp=1)))
    assert re.search(r"use --config\.mesh\.data=1 --config\.mesh\.fsdp=8 \(about [\d.]+ GiB\)", message)


def test_the_compilers_own_figure_counts(explain):
    """It needs 20.5 GiB, whatever the estimate: what helps must save more than that leaves out."""
    small = job(batch_size=16, remat="full")
    message = explain(small, 15.75, OF_A_TPU)
    assert "needed 20.50 GiB or more" in message and message.endswith("more devices or a smaller model.")


def test_other_jobs(explain):
    message = explain(TokenizerJob(train=TrainConfig(batch_size=32)))
    assert "32 clips of 17 frames of 128x128" in message
    assert "use --config.tokenizer.remat=True or --config.train.batch_size=16 or more devices" in message
    message = explain(SampleJob())
    assert "--config.batch_size=4 or --config.sampling.decoding.weights=int8 or" in message
    assert "task 'demo': end other processes" in explain(DemoJob(), error=MemoryError())


def test_nothing_is_worse_for_a_failing_estimate(explain, monkeypatch):
    monkeypatch.setattr(out_of_memory, "row_length", lambda *_: 1 / 0)
    assert "use a smaller batch" in explain(job())


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
from loong_jax import main
main.run()
"""


@pytest.mark.slow
def test_a_training_that_does_not_fit(tmp_path):
    """A real one, in a process with 6 GiB of address space, where the state needs 14."""
    command = [sys.executable, "-c", LIMITED, "--config=configs/stage1.py:700m", f"--workdir={tmp_path / 'stage1'}"]
    settings = {"allow_untrained_tokenizer": True, "model.num_video_ids": 64, "model.remat": "none", "data.pack": 0}
    settings |= {
        "data.num_images": 32,
        "data.frame_size": 32,
        "train.eval_batches": 0,
        "tokenizer.quantizer.num_codes": 64,
    }
    settings |= {"tokenizer.base_channels": 8, "tokenizer.norm_groups": 4, "tokenizer.num_res_blocks": 1}
    command += [f"--config.{name}={value}" for name, value in settings.items()]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: Memory ran out in the training of 16 rows of")
