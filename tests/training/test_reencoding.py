"""The loss that makes decoded pixels give the same ids again."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from loong_jax import sharding
from loong_jax.config import DEBUG_TOKENIZER, DataConfig, MeshConfig, TokenizerJob, TokenizerLossConfig
from loong_jax.data.moving_digits import MovingDigits
from loong_jax.tokenizer.autoencoder import Autoencoder
from loong_jax.training.tokenizer_step import create_tokenizer_state, make_train_step

JOB = TokenizerJob(
    tokenizer=DEBUG_TOKENIZER, data=DataConfig(frame_size=32, num_frames=5), init_from="elsewhere", freeze_encoder=True
)


def video():
    source = MovingDigits("train", 32, 5, 0.0)
    return np.stack([source[index]["video"] for index in range(4)])


def metrics_of_training(weight, num_steps):
    """Metrics of each step on one batch; only the weight of this loss differs."""
    job = dataclasses.replace(JOB, loss=TokenizerLossConfig(reencoding_weight=weight))
    optimizer, mesh = optax.adam(3e-3), sharding.make_mesh(MeshConfig(data=1))
    state, shardings = create_tokenizer_state(job, optimizer, mesh)
    step, metrics = make_train_step(job, optimizer, shardings, mesh), []
    for _ in range(num_steps):
        state, found = step(state, {"video": video()})
        metrics.append(jax.device_get(found))
    return state, metrics


def test_the_error_is_the_mean_squared_distance_of_unit_latents_to_their_codes():
    model = Autoencoder(DEBUG_TOKENIZER, nnx.Rngs(0))
    pixels = jnp.asarray(video()[:2], jnp.float32) / 127.5 - 1
    ids = jax.random.randint(jax.random.key(1), model.encode(pixels)[0].shape, 0, 64)
    latents = np.asarray(model._latents(pixels, None)[0], np.float64)
    codes = np.asarray(model.quantizer.codebook[...], np.float64)[ids]
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (latents, codes)]
    expected = np.square(unit[0] - unit[1]).mean()
    np.testing.assert_allclose(model.reencoding_error(pixels, ids), expected, rtol=1e-5)


@pytest.mark.slow
def test_training_with_it_brings_the_ids_back():
    """The same batch, 40 steps."""
    state, metrics = metrics_of_training(1.0, 40)
    assert metrics[-1]["reencoding_error"] < 0.5 * metrics[0]["reencoding_error"]
    plain, others = metrics_of_training(0.0, 40)
    assert "reencoding_error" not in others[0]
    jax.tree.map(np.testing.assert_array_equal, state.params["encoder"], plain.params["encoder"])

    def share_of_same_ids(params):
        model = nnx.merge(nnx.graphdef(Autoencoder(DEBUG_TOKENIZER, nnx.Rngs(0))), params)
        ids, _ = model.encode(jnp.asarray(video(), jnp.float32) / 127.5 - 1)
        return (model.encode(model.decode(ids)[0])[0] == ids).mean()

    assert share_of_same_ids(state.params) > share_of_same_ids(plain.params) + 0.1
