"""The adversarial game of the tokenizer: its losses by hand, when it starts, and the step that plays it."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from loong_jax import sharding
from loong_jax.config import (
    DEBUG_TOKENIZER,
    DataConfig,
    DiscriminatorConfig,
    MeshConfig,
    OptimizerConfig,
    TokenizerJob,
    TokenizerLossConfig,
    TrainConfig,
)
from loong_jax.data.moving_digits import MovingDigits
from loong_jax.tokenizer import discriminator
from loong_jax.tokenizer.autoencoder import abstract_autoencoder
from loong_jax.training.adversary import Adversary
from loong_jax.training.optimizer import make_optimizer
from loong_jax.training.tokenizer_step import create_tokenizer_state, make_train_step, to_unit_range

START, RAMP = 2, 4
LOSS = TokenizerLossConfig(
    reconstruction="l1", adversarial_weight=0.5, adversarial_start=START, adversarial_ramp=RAMP, adaptive_max=100.0
)
JOB = TokenizerJob(
    tokenizer=DEBUG_TOKENIZER,
    data=DataConfig(frame_size=32, num_frames=5),
    loss=LOSS,
    discriminator=DiscriminatorConfig(base_channels=4, channel_multipliers=(1, 2), learning_rate=1e-3),
    ema_decay=0.9,
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2, weight_decay=0.0),
    train=TrainConfig(num_steps=20, batch_size=4),
)
LATER = jnp.int32(START)


@pytest.fixture(scope="module")
def clips():
    real, fake = jax.random.uniform(jax.random.key(0), (2, 3, 5, 32, 32, 3), minval=-1, maxval=1)
    return real, fake / 2


def adversary(**changes):
    return Adversary(dataclasses.replace(JOB, loss=dataclasses.replace(LOSS, **changes)))


def logits(state, video):
    graphdef, _ = discriminator.abstract_discriminator(JOB.discriminator, (32, 32))
    return np.asarray(nnx.merge(graphdef, state.params)(video), np.float64)


def softplus(x):
    return np.log1p(np.exp(x))


@pytest.mark.parametrize("kind", [pytest.param("non_saturating", marks=pytest.mark.slow), "hinge"])
def test_losses_by_hand(kind, clips):
    game = adversary(adversarial=kind, lecam_weight=3.0)
    state = game.init(jax.random.key(1))
    state = dataclasses.replace(state, real_mean=jnp.float32(0.8), fake_mean=jnp.float32(-0.3))
    real, fake = (logits(state, video) for video in clips)
    assert np.abs(real.mean() - fake.mean()) > 1e-3
    if kind == "hinge":
        expected = (np.maximum(1 - real, 0).mean() + np.maximum(1 + fake, 0).mean()) / 2
        answer = -fake.mean()
    else:
        expected, answer = softplus(-real).mean() + softplus(fake).mean(), softplus(-fake).mean()
    expected += 3 * (max(real.mean() + 0.3, 0) ** 2 + max(0.8 - fake.mean(), 0) ** 2)
    after, metrics = jax.jit(game.learn)(state, *clips, LATER)
    np.testing.assert_allclose(metrics["discriminator_loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(after.real_mean, 0.999 * 0.8 + 0.001 * real.mean(), rtol=1e-5)
    np.testing.assert_allclose(after.fake_mean, 0.999 * -0.3 + 0.001 * fake.mean(), rtol=1e-5)
    loss, gradient = jax.jit(game.judge)(state, clips[1], LATER)
    np.testing.assert_allclose(loss, answer, rtol=1e-5)
    # A small step against the gradient lowers the loss by step x |gradient|^2.
    small = 1e-3 / jnp.linalg.norm(gradient)
    lower, _ = jax.jit(game.judge)(state, clips[1] - small * gradient, LATER)
    np.testing.assert_allclose(loss - lower, small * jnp.square(gradient).sum(), rtol=0.05)


@pytest.mark.slow
def test_r1_is_the_squared_gradient_at_each_real_clip(clips):
    real, fake = clips
    with_r1, without = adversary(r1_weight=2.0), adversary()
    state = without.init(jax.random.key(1))
    losses = [game.learn(state, real, fake, LATER)[1]["discriminator_loss"] for game in (with_r1, without)]
    graphdef, _ = discriminator.abstract_discriminator(JOB.discriminator, (32, 32))
    squares = [
        np.square(jax.grad(lambda x: nnx.merge(graphdef, state.params)(x[None])[0])(clip)).sum() for clip in real
    ]
    np.testing.assert_allclose(losses[0] - losses[1], 2 * np.mean(squares), rtol=1e-4)


@pytest.mark.slow
def test_before_its_start_the_game_changes_nothing_and_then_its_weight_rises(clips):
    game = adversary()
    state = game.init(jax.random.key(1))
    before = jnp.int32(START - 1)
    same, metrics = game.learn(state, *clips, before)
    jax.tree.map(np.testing.assert_array_equal, same, state)
    assert all(value == 0 for value in metrics.values())
    loss, gradient = game.judge(state, clips[1], before)
    assert loss == 0 and not gradient.any()
    weights = [float(game.weight(jnp.int32(step))) for step in range(START + RAMP + 2)]
    np.testing.assert_allclose(weights, [0, 0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5])
    learned, _ = game.learn(state, *clips, LATER)
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (learned.params, state.params)), strict=True))


@cache
def training():
    mesh = sharding.make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    optimizer = make_optimizer(JOB.optimizer, JOB.train.num_steps)
    state, shardings = create_tokenizer_state(JOB, optimizer, mesh)
    return mesh, state, make_train_step(JOB, optimizer, shardings, mesh)


def batch():
    source = MovingDigits("train", 32, 5)
    return {"video": np.stack([source[index]["video"] for index in range(4)])}


def copied(state):
    return jax.tree.map(jnp.copy, state)


@pytest.mark.slow
def test_the_weight_makes_both_gradients_equally_long_at_the_last_layer():
    _, state, step = training()
    state = dataclasses.replace(copied(state), step=jnp.int32(START + RAMP))
    graphdef, _ = abstract_autoencoder(DEBUG_TOKENIZER)
    video, game = to_unit_range(batch()["video"]), Adversary(JOB)

    def norm(loss_fn):
        gradient = jax.jit(jax.grad(lambda params: loss_fn(nnx.merge(graphdef, params)(video).video)))(state.params)
        layers = gradient["decoder"]["layers"]
        return np.linalg.norm(layers[max(layers)]["kernel"])

    def answer(decoded):
        logits = game._logits(state.adversary.params, decoded)
        return jax.nn.softplus(-logits).mean()

    expected = 0.5 * norm(lambda decoded: jnp.abs(decoded - video).mean()) / (norm(answer) + 1e-4)
    assert 0.01 < expected < 49
    _, metrics = step(state, batch())
    np.testing.assert_allclose(metrics["adversarial_weight"], expected, rtol=1e-4)


@pytest.mark.slow
def test_the_running_mean_follows_the_weights_and_keeps_the_codes():
    _, state, step = training()
    state = copied(state)
    mean = jax.device_get(state.ema)
    for count in range(3):
        state, _ = step(state, batch())
        decay = min(0.9, (1 + count) / (10 + count))
        mean = jax.tree.map(lambda m, p, decay=decay: decay * m + (1 - decay) * p, mean, jax.device_get(state.params))
    mean["quantizer"] = state.params["quantizer"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.ema, mean)
    assert state.best_params is state.ema
    kernel = state.ema["decoder"]["layers"][0]["kernel"]
    assert np.abs(kernel - state.params["decoder"]["layers"][0]["kernel"]).max() > 1e-6


@pytest.mark.slow
def test_a_step_that_is_not_finite_changes_nothing_but_the_count():
    _, state, step = training()
    state = copied(state)
    bias = state.params["decoder"]["layers"][0]["bias"]
    state.params["decoder"]["layers"][0]["bias"] = bias.at[0].set(jnp.inf)
    before = jax.device_get(state)
    after, metrics = step(state, batch())
    assert metrics["skipped"] == 1 and not np.isfinite(metrics["loss"])
    after = jax.device_get(after)
    assert after.step == before.step + 1
    assert (after.skips.total, after.skips.in_a_row) == (before.skips.total + 1, before.skips.in_a_row + 1)
    after = dataclasses.replace(after, step=before.step, skips=before.skips)
    jax.tree.map(np.testing.assert_array_equal, after, before)


def in_full_swing(state):
    """Past the start, with second moments as in test_steps: from 0, Adam would follow mere rounding."""

    def swinging(opt_state):
        return optax.tree.set(
            opt_state, nu=jax.tree.map(lambda x: np.full_like(x, 1e-4), optax.tree.get(opt_state, "nu"))
        )

    game = dataclasses.replace(state.adversary, opt_state=swinging(state.adversary.opt_state))
    return dataclasses.replace(state, step=np.int32(START + RAMP), opt_state=swinging(state.opt_state), adversary=game)


@cache
def one_step(config):
    """State and metrics after one step of eight clips on a mesh of the first devices."""
    loss = dataclasses.replace(LOSS, r1_weight=1.0, lecam_weight=1.0)
    job = dataclasses.replace(JOB, loss=loss)
    mesh = sharding.make_mesh(config, jax.devices()[: config.data * config.fsdp * config.sequence * config.tensor])
    optimizer = make_optimizer(job.optimizer, 100)
    state, shardings = create_tokenizer_state(job, optimizer, mesh)
    state = jax.device_put(in_full_swing(jax.device_get(training()[1])), shardings)
    source = MovingDigits("train", 32, 5)
    clips = {"video": np.stack([source[index]["video"] for index in range(8)])}
    with jax.set_mesh(mesh):
        return make_train_step(job, optimizer, shardings, mesh)(state, sharding.shard_batch(mesh, clips))


@pytest.mark.slow
@pytest.mark.parametrize("config", [MeshConfig(fsdp=4, tensor=2), MeshConfig(fsdp=2, sequence=2, tensor=2)], ids=str)
def test_eight_devices_play_as_one_does(config):
    placed = one_step(config)[0]
    kernel = placed.adversary.params["blocks"][1]["second"]["kernel"]
    for tree in (placed.adversary.params, *(optax.tree.get(placed.adversary.opt_state, name) for name in ("mu", "nu"))):
        shard = tree["blocks"][1]["second"]["kernel"].addressable_shards[0].data
        assert shard.shape == (*kernel.shape[:4], kernel.shape[4] // config.fsdp)
    found, expected = jax.device_get((one_step(config), one_step(MeshConfig(fsdp=1))))
    for name, value in expected[1].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    for (path, x), y in zip(jax.tree.leaves_with_path(found[0]), jax.tree.leaves(expected[0]), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * np.abs(y).max(), err_msg=jax.tree_util.keystr(path))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_start_of_the_game_breaks_nothing(seed):
    """Through the start no step is skipped, and PSNR that drops by more than 1.5 dB is back within a hundred steps."""
    start, num_steps = 150, 350
    loss = dataclasses.replace(LOSS, adversarial_start=start, adversarial_ramp=20, lecam_weight=0.01, adaptive_max=1.0)
    rates = OptimizerConfig(learning_rate=1e-2, warmup_steps=10, end_fraction=0.5, weight_decay=0.0, b1=0.5, b2=0.99)
    job = dataclasses.replace(JOB, seed=seed, loss=loss, optimizer=rates, train=TrainConfig(num_steps, batch_size=8))
    mesh = sharding.make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    optimizer = make_optimizer(job.optimizer, num_steps)
    state, shardings = create_tokenizer_state(job, optimizer, mesh)
    step, source, psnr = make_train_step(job, optimizer, shardings, mesh), MovingDigits("train", 32, 5), []
    for number in range(num_steps):
        rows = range(8 * number, 8 * number + 8)
        state, metrics = step(state, {"video": np.stack([source[index]["video"] for index in rows])})
        assert metrics["skipped"] == 0
        psnr.append(float(metrics["psnr"]))
    means = np.convolve(psnr, np.full(20, 1 / 20), mode="valid")  # each of 20 steps
    before = means[start - 20]
    assert before > psnr[0] + 3
    for first in range(start, num_steps, 100):
        assert means[first : first + 81].max() > before - 1.5
