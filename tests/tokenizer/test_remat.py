"""Rematerialized blocks run in loops where they are alike: the same numbers, and a smaller program."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from loong_jax.config import DEBUG_TOKENIZER
from loong_jax.tokenizer.autoencoder import abstract_autoencoder, init_params
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer

PLAIN = dataclasses.replace(
    DEBUG_TOKENIZER,
    base_channels=8,
    channel_multipliers=(1, 1),
    temporal_strides=(2,),
    spatial_strides=(2,),
    norm_groups=4,
    num_res_blocks=2,
    num_mid_blocks=2,
    decoder_norm="adaptive",
)
REMAT = dataclasses.replace(PLAIN, remat=True)
PARAMS = init_params(PLAIN, jax.random.key(0))
VIDEO = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 3, 16, 16, 3)), jnp.float32)


def objective(config):
    graphdef, _ = abstract_autoencoder(config)

    def error(params):
        model = nnx.merge(graphdef, params)
        return jnp.square(model(VIDEO).video - VIDEO).mean()

    return error


@pytest.mark.slow
def test_gradients_are_equal_and_the_program_is_smaller():
    programs = [jax.jit(jax.value_and_grad(objective(config))).lower(PARAMS) for config in (PLAIN, REMAT)]
    (plain, plain_grads), (remat, remat_grads) = (program.compile()(PARAMS) for program in programs)
    np.testing.assert_allclose(plain, remat, rtol=1e-6)
    largest = max(jnp.abs(grad).max() for grad in jax.tree.leaves(plain_grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), plain_grads, remat_grads)
    sizes = [len(program.as_text()) for program in programs]
    assert sizes[1] < 0.8 * sizes[0]


@pytest.mark.slow
def test_streams_remember_the_blocks_of_a_loop():
    plain, remat = VideoTokenizer(PLAIN, PARAMS), VideoTokenizer(REMAT, PARAMS)
    video = np.random.default_rng(1).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    ids = plain.encode(video)
    np.testing.assert_array_equal(remat.encode(video), ids)
    np.testing.assert_array_equal(np.concatenate(list(remat.encode_stream([video[:3], video[3:]]))), ids)
    frames = np.concatenate(list(remat.decode_stream([ids[:1], ids[1:3], ids[3:]])))
    assert np.abs(frames.astype(int) - plain.decode(ids)).max() <= 1
