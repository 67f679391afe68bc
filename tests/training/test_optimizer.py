"""AdamW against float64 NumPy, Muon against its promise, and the corners of the schedule."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from loong_jax.config import DEBUG_TRANSFORMER, OptimizerConfig
from loong_jax.models import transformer
from loong_jax.tokenizer import autoencoder
from loong_jax.training.optimizer import make_optimizer, make_schedule

CONFIG = OptimizerConfig(learning_rate=0.1, warmup_steps=2, b1=0.8, b2=0.9, weight_decay=0.3, clip_norm=1.0)
NUM_STEPS = 8


def test_schedule_warms_up_from_its_first_step_and_ends_at_its_fraction():
    schedule = make_schedule(CONFIG, NUM_STEPS)
    cosine = 0.5 * (1 + np.cos(np.pi * np.arange(7) / 6))
    expected = [0.1 / 3, 0.2 / 3, *(0.1 * (0.1 + 0.9 * cosine))]
    np.testing.assert_allclose([schedule(step) for step in range(NUM_STEPS + 1)], expected, rtol=1e-5)


def test_the_schedule_that_stays():
    """Warm-up over 2 of 10 steps, 5 at the peak, and a line to a tenth of it over the last 3."""
    schedule = make_schedule(dataclasses.replace(CONFIG, schedule="wsd", decay_share=0.3), 10)
    expected = [0.1 / 3, 0.2 / 3, *[0.1] * 6, 0.07, 0.04, 0.01]
    np.testing.assert_allclose([schedule(step) for step in range(11)], expected, rtol=1e-5)


def test_decay_spares_the_norms_of_stacked_layers():
    model = dataclasses.replace(DEBUG_TRANSFORMER, num_text_ids=100, qk_norm=True)
    params = jax.tree.map(jnp.ones_like, transformer.init_params(model, jax.random.key(0)))
    optimizer = make_optimizer(CONFIG, NUM_STEPS)
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(nothing, optimizer.init(params), params)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(update, 0 if "norm" in name else -0.3 * 0.1 / 3, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["cosine", "wsd"])
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_schedule_of_a_short_training_reaches_the_peak(num_steps, name):
    config = OptimizerConfig(schedule=name)
    rates = [float(make_schedule(config, num_steps)(step)) for step in range(num_steps + 1)]
    np.testing.assert_allclose(max(rates), OptimizerConfig().learning_rate, rtol=1e-5)
    assert min(rates) > 0


def test_steps_are_adamw_with_clipped_gradients_and_no_decay_of_vectors():
    rng = np.random.default_rng(0)
    params = {"matrix": rng.normal(size=(3, 2)), "scale": rng.normal(size=4)}
    # The norm of the first gradients is about 3 and is cut to 1; that of the second is about 0.03 and is left alone.
    gradients = [{name: size * rng.normal(size=value.shape) for name, value in params.items()} for size in (1, 0.01)]

    optimizer = make_optimizer(CONFIG, NUM_STEPS)
    found = jax.tree.map(lambda x: x.astype(np.float32), params)
    state, update = optimizer.init(found), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(jax.tree.map(lambda x: x.astype(np.float32), gradient), state, found)
        found = optax.apply_updates(found, updates)

    first = {name: np.zeros_like(value) for name, value in params.items()}
    second = {name: np.zeros_like(value) for name, value in params.items()}
    for step, gradient in enumerate(gradients):
        norm = np.sqrt(sum(np.square(value).sum() for value in gradient.values()))
        rate = 0.1 * (step + 1) / 3
        for name in params:
            g = gradient[name] / max(norm, 1)
            first[name] = 0.8 * first[name] + 0.2 * g
            second[name] = 0.9 * second[name] + 0.1 * g**2
            adam = (first[name] / (1 - 0.8 ** (step + 1))) / (np.sqrt(second[name] / (1 - 0.9 ** (step + 1))) + 1e-8)
            decay = 0.3 * params[name] if name == "matrix" else 0
            params[name] = params[name] - rate * (adam + decay)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, params)


def test_muon_turns_each_matrix_of_each_layer_into_an_orthogonal_step():
    """All singular values of a step are near one, whatever the gradient's; what is no matrix of a layer gets Adam's."""
    config = dataclasses.replace(CONFIG, name="muon", matrix_learning_rate=0.5, weight_decay=0.0, clip_norm=1e9)
    model = dataclasses.replace(DEBUG_TRANSFORMER, num_text_ids=100)
    params = transformer.init_params(model, jax.random.key(0))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    # Each layer's gradient has its own size: one orthogonalized over the stack would lose the smaller.
    sizes = np.array([1.0, 1e-3])
    gradients = jax.tree.unflatten(
        structure, [jax.random.normal(k, p.shape) for k, p in zip(keys, leaves, strict=True)]
    )
    for name, value in gradients["blocks"].items():
        gradients["blocks"][name] = value * sizes.reshape(-1, *[1] * (value.ndim - 1))
    optimizer = make_optimizer(config, NUM_STEPS, transformer.matrix_axes)
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    rate = 0.5 / 3  # the first of two warm-up steps
    for name, num_inputs in (
        ("query", 1),
        ("key", 1),
        ("value", 1),
        ("output", 2),
        ("gate", 1),
        ("up", 1),
        ("down", 1),
    ):
        for step in np.asarray(updates["blocks"][name], np.float64):
            rows = int(np.prod(step.shape[:num_inputs]))
            values = np.linalg.svd(step.reshape(rows, -1), compute_uv=False)
            scale = rate * max(1, step.size / rows / rows) ** 0.5
            # Five iterations do not lift the very smallest one of a random square matrix all the way.
            assert 0.5 < np.quantile(values, 0.1) / scale and values.max() / scale < 1.4
    for name in ("embedding", "head", "final_norm"):
        nesterov = 0.8 * 0.2 / (1 - 0.8**2) + 1  # optax gives Adam Nesterov's momentum too
        np.testing.assert_allclose(updates[name], -0.1 / 3 * nesterov * np.sign(gradients[name]), rtol=1e-3)


def test_muon_takes_convolution_kernels_as_matrices_of_windows_and_channels():
    config = dataclasses.replace(CONFIG, name="muon", matrix_learning_rate=0.5, weight_decay=0.0, clip_norm=1e9)
    rng = np.random.default_rng(0)
    gradients = {"kernel": rng.normal(size=(3, 3, 3, 4, 16)), "bias": rng.normal(size=16)}
    gradients = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gradients)
    params = jax.tree.map(jnp.zeros_like, gradients)
    optimizer = make_optimizer(config, NUM_STEPS, autoencoder.matrix_axes)
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    values = np.linalg.svd(np.asarray(updates["kernel"], np.float64).reshape(-1, 16), compute_uv=False)
    scale = 0.5 / 3 * max(1, 16 / (27 * 4)) ** 0.5
    assert 0.6 < values.min() / scale and values.max() / scale < 1.4
    np.testing.assert_allclose(np.abs(updates["bias"]), np.abs(updates["bias"][0]), rtol=1e-3)
