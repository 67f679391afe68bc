"""NaN in a batch, in a gradient and in a weight of the language model: nothing changes but the counts of steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loong_jax import sharding
from loong_jax.config import DEBUG_TRANSFORMER, LanguageModelJob, LossConfig, OptimizerConfig
from loong_jax.data.sequences import build_sequence
from loong_jax.training import lm_step
from loong_jax.training.optimizer import make_optimizer
from loong_jax.vocab import Vocabulary

pytestmark = pytest.mark.slow
JOB = LanguageModelJob(
    model=dataclasses.replace(DEBUG_TRANSFORMER, num_text_ids=50),
    loss=LossConfig(early_frames=1),
    optimizer=OptimizerConfig(learning_rate=0.1, warmup_steps=0),
    ema_decay=0.9,
)
MARK = 7.0  # a loss weight whose batch has a finite loss, and gradients that are not


def make_batch(weight: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = [build_sequence([1, 2], rng.integers(0, 64, (2, 2, 2)), Vocabulary(50, 64), 16, JOB.loss) for _ in range(2)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    batch["loss_weights"][0, 5] = weight
    return batch


def test_nothing_changes_but_the_counts(make_mesh, monkeypatch):
    make_loss, mesh = lm_step.make_loss, make_mesh(fsdp=2)

    def with_bad_gradients(*arguments):
        loss = make_loss(*arguments)

        def marked(params, batch, *rest):
            value, sums = loss(params, batch, *rest)
            is_marked = jnp.any(batch["loss_weights"] == MARK)
            # 0 in value, and NaN in gradient where the root is of 0.
            return value + 0 * jnp.sqrt(jnp.where(is_marked, 0.0, 1.0) * jnp.square(params["final_norm"]).sum()), sums

        return marked

    monkeypatch.setattr(lm_step, "make_loss", with_bad_gradients)
    optimizer = make_optimizer(JOB.optimizer, 10)
    state, shardings = lm_step.create_model_state(JOB, optimizer, mesh)
    step = lm_step.make_train_step(JOB, 2, optimizer, shardings, mesh)

    def take(state, weight):
        with jax.set_mesh(mesh):
            state, metrics = step(state, sharding.shard_batch(mesh, make_batch(weight)))
        return state, jax.device_get(metrics)

    state, metrics = take(state, 1.0)
    assert metrics["skipped"] == 0 and np.isfinite(metrics["loss"])
    good = jax.device_get(state)
    for count, weight in enumerate((np.nan, MARK), start=1):
        state, metrics = take(state, weight)
        assert metrics["skipped"] == 1 and metrics["skipped_in_a_row"] == metrics["skipped_steps"] == count
        assert np.isfinite(metrics["loss"]) == (weight == MARK)
        now = jax.device_get(state)
        for field in ("params", "opt_state", "ema"):
            jax.tree.map(np.testing.assert_array_equal, getattr(now, field), getattr(good, field))
    state, metrics = take(state, 1.0)
    assert (metrics["skipped"], metrics["skipped_in_a_row"], metrics["skipped_steps"]) == (0, 0, 2)
    assert int(state.step) == 4
    moments = jax.device_get(state.opt_state)
    head = jax.device_put(np.full_like(good.params["head"], np.nan), state.params["head"].sharding)
    state, metrics = take(dataclasses.replace(state, params=state.params | {"head": head}), 1.0)
    assert metrics["skipped"] == 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.opt_state), moments)
