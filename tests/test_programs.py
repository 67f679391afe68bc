"""Contract 13: every full-size training lowers on a mesh, with nothing allocated."""

from pathlib import Path

import jax
import pytest

from loong_jax.config import DecodingConfig
from loong_jax.config_dict import load_job
from loong_jax.programs import bytes_on_device, lower_decoding, lower_model_training, lower_tokenizer_training

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("experiment", ["stage1:700m", "stage2:3b", "stage3:7b"])
def test_a_full_size_model_lowers_on_a_mesh_of_every_kind(experiment, make_mesh):
    job = load_job(CONFIGS, experiment)
    program = lower_model_training(job, make_mesh(fsdp=2, sequence=2, tensor=2), job.train.batch_size)
    count = sum(x.size for x in jax.tree.leaves(program.params))
    assert count * 4 / 4 <= bytes_on_device(program.params) < 1.01 * count * 4 / 4  # over fsdp and tensor
    assert 2 * count <= bytes_on_device(program.rest) < 2 * 1.01 * count  # two moments
    text = program.lowered.as_text()
    # Neither scores of a whole row over the vocabulary nor over all places.
    length = next(x for x in jax.tree.leaves(program.lowered.in_avals) if x.ndim == 2 and x.dtype == "int32").shape[1]
    assert f"{length}x{job.model.vocab_size}x" not in text and f"{length}x40320x" not in text


@pytest.mark.slow
def test_the_full_size_tokenizer_lowers(make_mesh):
    job = load_job(CONFIGS, "tokenizer")
    program = lower_tokenizer_training(job, make_mesh(fsdp=4, sequence=2), 8)
    count = sum(x.size for x in jax.tree.leaves(program.params))
    assert abs(count / 246e6 - 1) < 0.005 and count <= bytes_on_device(program.params)


def test_full_size_sampling_lowers(make_mesh):
    job = load_job(CONFIGS, "stage3:7b")
    program = lower_decoding(job, make_mesh(data=2, tensor=4), 2, DecodingConfig(), is_guided=True)
    assert bytes_on_device(program.params) == pytest.approx(6.675e9, rel=0.001)  # over four, 8,192 columns of the head
