"""What the language model's step adds to a plain one: parts of a batch, running means, dropout, corrupted context."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from loong_jax.config import DEBUG_TRANSFORMER, LanguageModelJob, LossConfig, OptimizerConfig, TrainConfig
from loong_jax.data.sequences import build_sequence
from loong_jax.models import transformer
from loong_jax.training.lm_step import corrupt, create_model_state, make_loss, make_train_step
from loong_jax.training.optimizer import make_optimizer
from loong_jax.vocab import Vocabulary

MODEL = dataclasses.replace(DEBUG_TRANSFORMER, num_layers=1, num_text_ids=50)
JOB = LanguageModelJob(
    model=MODEL,
    loss=LossConfig(early_frames=1, z_weight=1e-2),
    optimizer=OptimizerConfig(learning_rate=0.05, warmup_steps=0),
    train=TrainConfig(batch_size=8),
)
VOCABULARY = Vocabulary(50, 64)


def make_batch(length=16) -> dict[str, np.ndarray]:
    """Eight clips of two latent frames with captions of several lengths: rows differ in weight."""
    rng = np.random.default_rng(0)
    captions, clips = rng.integers(0, 50, (8, 3)), rng.integers(0, 64, (8, 2, 2, 2))
    rows = [build_sequence(list(captions[i, : i % 4]), clips[i], VOCABULARY, length, JOB.loss) for i in range(8)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def after_steps(job: LanguageModelJob, mesh, count=1):
    """State and metrics after some steps on the same batch."""
    optimizer = make_optimizer(job.optimizer, 10)
    state, shardings = create_model_state(job, optimizer, mesh)
    step = make_train_step(job, 2, optimizer, shardings, mesh)
    states = [jax.device_get(state)]
    with jax.set_mesh(mesh):
        for _ in range(count):
            state, metrics = step(state, make_batch())
            states.append(jax.device_get(state))
    return states, jax.device_get(metrics)


@pytest.mark.parametrize("sizes", [{"fsdp": 1}, {"data": 2, "fsdp": 2}], ids=str)
def test_a_batch_in_parts_is_the_whole_batch(sizes, make_mesh):
    (_, whole), expected = after_steps(JOB, make_mesh(fsdp=1))
    (_, parts), found = after_steps(dataclasses.replace(JOB, accumulate=2), make_mesh(**sizes))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
    for one, other in zip(jax.tree.leaves(parts.params), jax.tree.leaves(whole.params), strict=True):
        # Adam's first step has the size of the learning rate, whatever the gradient: compare what is far from 0.
        assert np.mean(np.abs(one - other) > 1e-3) < 0.01


def test_the_running_mean_is_that_of_the_weights(make_mesh):
    states, _ = after_steps(dataclasses.replace(JOB, ema_decay=0.15), make_mesh(fsdp=1), count=3)
    mean = states[0].params["head"].astype(np.float64)
    for step, state in enumerate(states[1:]):
        decay = min(0.15, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * state.params["head"]
    np.testing.assert_allclose(states[-1].ema["head"], mean, atol=1e-6)
    assert np.abs(states[-1].ema["head"] - states[-1].params["head"]).max() > 1e-3
    assert states[-1].best_params is states[-1].ema


def test_corrupted_context_is_random_video_ids_and_targets_stay():
    job = dataclasses.replace(JOB, loss=dataclasses.replace(JOB.loss, context_corruption=0.6))
    rows, length = 400, 200
    tokens = np.full((rows, length), 60, np.int32)
    frame_ids = np.where(np.arange(length) < 40, -1, 3)[None].repeat(rows, 0)
    found = np.asarray(corrupt(tokens, frame_ids, jax.random.key(0), job))
    assert (found[:, :40] == 60).all()
    assert found.min() >= 50 and found.max() < 114 and len(np.unique(found)) == 64
    shares = (found[:, 40:] != 60).mean(axis=1) * 64 / 63
    # Uniform in [0, 0.6): mean 0.3, and quarters at 0.15 and 0.45.
    np.testing.assert_allclose(np.quantile(shares, [0.25, 0.5, 0.75]), [0.15, 0.3, 0.45], atol=0.04)
    assert shares.max() < 0.75

    # The step reads other ids and predicts the same ones: a model without attention to them has the same loss.
    params = jax.tree.map(np.zeros_like, jax.device_get(create_params()))
    batch, loss = make_batch(), make_loss(job, 2)
    np.testing.assert_allclose(loss(params, batch, None, jax.random.key(1))[0], loss(params, batch)[0], rtol=1e-6)


def create_params():
    return transformer.init_params(MODEL, jax.random.key(0))


def test_dropout_is_for_training_and_differs_by_key():
    job = dataclasses.replace(JOB, model=dataclasses.replace(MODEL, dropout=0.5))
    loss, params, batch = jax.jit(make_loss(job, 2)), jax.tree.map(lambda x: 4 * x, create_params()), make_batch()
    plain = jax.jit(make_loss(JOB, 2))(params, batch)[0]
    np.testing.assert_allclose(loss(params, batch)[0], plain, rtol=1e-6)
    dropped = [loss(params, batch, None, jax.random.key(seed))[0] for seed in (0, 0, 1)]
    assert dropped[0] == dropped[1] != dropped[2]
    assert abs(dropped[0] - plain) > 1e-3


def test_z_loss_is_in_the_gradient_and_not_in_the_reported_loss(make_mesh):
    (_, with_z), metrics = after_steps(JOB, make_mesh(fsdp=1))
    without = dataclasses.replace(JOB, loss=dataclasses.replace(JOB.loss, z_weight=0.0))
    (_, plain), expected = after_steps(without, make_mesh(fsdp=1))
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)
    assert optax.tree.norm(jax.tree.map(np.subtract, with_z.params, plain.params)) > 1e-3
