"""Contracts 6 and 7: a resumed training is the unbroken one, and a stage starts from the weights of the one before."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest

from loong_jax.config import (
    DEBUG_TOKENIZER,
    DEBUG_TRANSFORMER,
    DataConfig,
    LanguageModelJob,
    MeshConfig,
    OptimizerConfig,
    TokenizerJob,
    TrainConfig,
)
from loong_jax.training.lm_job import train_language_model
from loong_jax.training.tokenizer_job import train_tokenizer

MEASURED = re.compile("_per_second$|_seconds$|^peak_memory|^mfu$")
TRAIN = TrainConfig(
    num_steps=4, batch_size=8, log_every=1, checkpoint_every=2, keep_checkpoints=4, eval_every=4, eval_batches=1
)
DATA = DataConfig(frame_size=32, num_frames=1, num_images=16, num_clips=16, max_text_ids=24)
MODEL_JOB = LanguageModelJob(
    model=DEBUG_TRANSFORMER,
    tokenizer=DEBUG_TOKENIZER,
    allow_untrained_tokenizer=True,
    data=DATA,
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1),
    train=TRAIN,
)
TOKENIZER_JOB = TokenizerJob(tokenizer=DEBUG_TOKENIZER, data=DATA, train=TRAIN)


def forget_from(workdir, step):
    """Leave the workdir as a kill after ``step`` would have."""
    for folder in (workdir / "checkpoints").iterdir():
        if folder.name.isdigit() and int(folder.name) > step:
            for file in sorted(folder.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
            folder.rmdir()


def parameters(result):
    """Those of a trained tokenizer, or what the language model's training returns."""
    return jax.device_get(getattr(result, "params", result))


def records(workdir):
    """All but what the clock and the machine say."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if not MEASURED.search(name)} for line in lines]


@pytest.mark.parametrize(
    ("train", "job"),
    [pytest.param(train_tokenizer, TOKENIZER_JOB, marks=pytest.mark.slow), (train_language_model, MODEL_JOB)],
)
def test_resumed_is_unbroken_bit_for_bit(train, job, tmp_path):
    workdir = tmp_path / "run"
    unbroken = parameters(train(job, workdir)), records(workdir)
    forget_from(workdir, 2)
    resumed = parameters(train(job, workdir)), records(workdir)
    jax.tree.map(np.testing.assert_array_equal, unbroken[0], resumed[0])
    assert unbroken[1] == resumed[1]


@pytest.mark.slow
def test_a_stage_starts_from_the_one_before_on_another_mesh(tmp_path):
    first = train_language_model(dataclasses.replace(MODEL_JOB, mesh=MeshConfig(fsdp=8)), tmp_path / "stage1")
    frozen = OptimizerConfig(learning_rate=1e-12, warmup_steps=0, weight_decay=0.0)
    following = dataclasses.replace(
        MODEL_JOB,
        init_from="../stage1",
        mesh=MeshConfig(data=2, fsdp=2, tensor=2),
        optimizer=frozen,
        train=dataclasses.replace(TRAIN, num_steps=1),
    )
    second = train_language_model(following, tmp_path / "stage2")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), jax.device_get(first), jax.device_get(second)
    )
    other = dataclasses.replace(following, model=dataclasses.replace(DEBUG_TRANSFORMER, mlp_dim=64))
    with pytest.raises(ValueError, match="another model: config.model.mlp_dim is 128, wanted 64"):
        train_language_model(other, tmp_path / "stage2_other")
    assert not (tmp_path / "stage2_other" / "tokens").exists()  # said before any work
    shutil.rmtree(tmp_path / "stage1")
    again = train_language_model(following, tmp_path / "stage2")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(second))
