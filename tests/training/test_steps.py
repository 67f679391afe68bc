"""Contracts 3 to 5 of the training steps: sharded = whole, the state is donated, and one program serves every step."""

import dataclasses
import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from loong_jax import sharding
from loong_jax.config import (
    DEBUG_TOKENIZER,
    DEBUG_TRANSFORMER,
    LanguageModelJob,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    TokenizerJob,
)
from loong_jax.data.moving_digits import MovingDigits
from loong_jax.data.sequences import build_sequence
from loong_jax.models import transformer
from loong_jax.tokenizer import autoencoder
from loong_jax.training import lm_step, tokenizer_step
from loong_jax.training.optimizer import make_optimizer
from loong_jax.training.state import TrainState, create_state
from loong_jax.vocab import Vocabulary

# With ``first_state``, one step moves the parameters by a good part of their size.
OPTIMIZER = OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
MODEL = dataclasses.replace(DEBUG_TRANSFORMER, num_text_ids=50, num_heads=8, num_kv_heads=8)
TOKENIZER = dataclasses.replace(
    DEBUG_TOKENIZER, channel_multipliers=(1, 2), temporal_strides=(2,), spatial_strides=(2,)
)
MODEL_JOB = LanguageModelJob(model=MODEL, loss=LossConfig(early_frames=1), optimizer=OPTIMIZER)
TOKENIZER_JOB = TokenizerJob(tokenizer=TOKENIZER, optimizer=OPTIMIZER)

WHOLE = MeshConfig(fsdp=1)
# A mesh, and what one of its devices holds of one kernel: the model's embedding [128, 64] of (vocab, embed), the
# tokenizer's first convolution [3, 3, 3, 48, 8] with its channels last.
MESHES = [
    (MODEL_JOB, MeshConfig(data=8, fsdp=1), (128, 64)),
    (MODEL_JOB, MeshConfig(fsdp=8), (128, 8)),
    (MODEL_JOB, MeshConfig(fsdp=2, sequence=2, tensor=2), (64, 32)),
    (MODEL_JOB, MeshConfig(fsdp=1, sequence=8), (128, 64)),
    (MODEL_JOB, MeshConfig(fsdp=1, tensor=8), (16, 64)),
    (TOKENIZER_JOB, MeshConfig(data=8, fsdp=1), (3, 3, 3, 48, 8)),
    (TOKENIZER_JOB, MeshConfig(fsdp=8), (3, 3, 3, 48, 1)),
    (TOKENIZER_JOB, MeshConfig(fsdp=2, sequence=2, tensor=2), (3, 3, 3, 48, 4)),
]


def name_of(value) -> str:
    if isinstance(value, MeshConfig):
        return "x".join(f"{size}{axis}" for axis, size in dataclasses.asdict(value).items() if size > 1)
    return getattr(value, "task", str(value))


# The tokenizer's step compiles for most of a minute on each mesh, the model's for ten seconds.
QUICK = [(MODEL_JOB, "8data"), (MODEL_JOB, "8fsdp"), (MODEL_JOB, "2fsdpx2sequencex2tensor")]
MARKED = [
    pytest.param(*mesh, marks=() if (mesh[0], name_of(mesh[1])) in QUICK else pytest.mark.slow) for mesh in MESHES
]
each_mesh = pytest.mark.parametrize(("job", "config", "part"), MARKED, ids=name_of)
each_job = pytest.mark.parametrize("job", [MODEL_JOB, pytest.param(TOKENIZER_JOB, marks=pytest.mark.slow)], ids=name_of)


class Training(NamedTuple):
    """One training, ready to step on its mesh."""

    mesh: jax.sharding.Mesh
    state: TrainState
    shardings: TrainState
    step: Callable


@cache
def start(job, config: MeshConfig) -> Training:
    """Put the training together as the jobs do, on a mesh of the first devices."""
    mesh = sharding.make_mesh(config, jax.devices()[: math.prod(getattr(config, axis) for axis in sharding.MESH_AXES)])
    optimizer, key = make_optimizer(job.optimizer, 100), jax.random.key(0)
    if job is MODEL_JOB:
        state, shardings = create_state(
            lambda key: transformer.init_params(MODEL, key), transformer.logical_axes(MODEL), optimizer, mesh, key
        )
        return Training(mesh, state, shardings, lm_step.make_train_step(job, 2, optimizer, shardings, mesh))
    state, shardings = tokenizer_step.create_tokenizer_state(job, optimizer, mesh)
    return Training(mesh, state, shardings, tokenizer_step.make_train_step(job, optimizer, shardings, mesh))


def make_batch(job, seed=0) -> dict[str, np.ndarray]:
    """Eight clips of two latent frames: as ids, with captions of several lengths, or as pixels."""
    if job is TOKENIZER_JOB:
        source = MovingDigits("train", 32, 3, seed=seed)
        return {"video": np.stack([source[index]["video"] for index in range(8)])}
    rng, vocabulary = np.random.default_rng(seed), Vocabulary(50, 64)
    captions, clips = rng.integers(0, 50, (8, 3)), rng.integers(0, 64, (8, 2, 2, 2))
    rows = [build_sequence(list(captions[i, : i % 4]), clips[i], vocabulary, 16, job.loss) for i in range(8)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@cache
def first_state(job) -> TrainState:
    """The first state, fetched, with second moments of 1e-4, about the square of the gradients' largest elements.

    From second moments of 0, Adam moves every parameter by the whole learning rate, also where the gradient is
    nothing but rounding, and rounding differs from mesh to mesh.
    """
    state = jax.device_get(start(job, WHOLE).state)
    squares = jax.tree.map(lambda x: np.full_like(x, 1e-4), optax.tree.get(state.opt_state, "nu"))
    return dataclasses.replace(state, opt_state=optax.tree.set(state.opt_state, nu=squares))


@cache
def one_step(job, config: MeshConfig) -> tuple[TrainState, dict]:
    """State and metrics after one step from ``first_state``, on their devices."""
    mesh, _, shardings, step = start(job, config)
    state = jax.device_put(first_state(job), shardings)
    with jax.set_mesh(mesh):
        return step(state, sharding.shard_batch(mesh, make_batch(job)))


def moments(state: TrainState) -> list:
    return [optax.tree.get(state.opt_state, name) for name in ("mu", "nu")]


# Contract 3: sharded = unsharded.


@each_mesh
def test_one_step_on_a_mesh_equals_one_without(job, config, part):
    found, expected = jax.device_get((one_step(job, config), one_step(job, WHOLE)))
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-5, err_msg=name)
    for (path, x), y in zip(jax.tree.leaves_with_path(found[0]), jax.tree.leaves(expected[0]), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-5 * np.abs(y).max(), err_msg=jax.tree_util.keystr(path))


@each_mesh
def test_gradients_on_a_mesh_equal_those_without(job, config, part):
    """The first moments after one step from 0 are the gradients, times a constant."""
    found, expected = (jax.device_get(moments(one_step(job, mesh)[0])[0]) for mesh in (config, WHOLE))
    for (path, x), y in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(x - y) <= 1e-4 * np.linalg.norm(y), jax.tree_util.keystr(path)


@each_job
def test_that_step_moves_every_parameter_and_moment(job):
    """Else the test above would compare states that nothing has happened to."""
    before, after = first_state(job), jax.device_get(one_step(job, WHOLE)[0])
    before, after = ((state.params, *moments(state)) for state in (before, after))
    for (path, x), y in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True):
        assert np.abs(x - y).max() > 1e-3 * np.abs(y).max(), jax.tree_util.keystr(path)


@each_mesh
def test_parameters_and_moments_lie_where_the_table_says(job, config, part):
    mesh, before, _, _ = start(job, config)
    axes = transformer.logical_axes(MODEL) if job is MODEL_JOB else autoencoder.logical_axes(TOKENIZER)
    axes = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
    for state in (before, one_step(job, config)[0]):
        for tree in (state.params, *moments(state)):
            kernel = tree["embedding"] if job is MODEL_JOB else tree["encoder"]["layers"][0]["kernel"]
            assert {shard.data.shape for shard in kernel.addressable_shards} == {part}
            for (path, leaf), names in zip(jax.tree.leaves_with_path(tree), axes, strict=True):
                planned = jax.NamedSharding(mesh, jax.P(*(sharding.RULES.get(name) for name in names)))
                assert leaf.sharding.is_equivalent_to(planned, leaf.ndim), jax.tree_util.keystr(path)
        counts = [count for _, count in optax.tree.get_all_with_path(state.opt_state, "count")]
        others = [state.step, *counts, *jax.tree.leaves(state.clusters)]
        assert all(leaf.sharding.is_fully_replicated for leaf in others)


@each_mesh
def test_each_device_reads_its_rows_of_the_batch(job, config, part):
    batch = make_batch(job)
    for name, array in sharding.shard_batch(start(job, config).mesh, batch).items():
        rows = 8 // (config.data * config.fsdp)
        assert {shard.data.shape for shard in array.addressable_shards} == {(rows, *batch[name].shape[1:])}
        np.testing.assert_array_equal(array, batch[name])


# Contracts 4 and 5: donation, and one compilation.


@each_job
def test_steps_reuse_the_memory_of_the_state_and_one_program(job):
    mesh, state, shardings, step = start(job, MeshConfig(fsdp=8))
    state = jax.tree.map(jnp.copy, state)  # the original is for the other tests: a step deletes what it is given
    with jax.set_mesh(mesh):
        for seed in range(3):
            batch = sharding.shard_batch(mesh, make_batch(job, seed))
            following, metrics = step(state, batch)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
            state = following
        assert int(state.step) == 3 and np.isfinite(metrics["loss"])
        assert step._cache_size() == 1
        memory = step.lower(state, batch).compile().memory_analysis()
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes == held
