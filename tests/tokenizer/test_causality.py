"""Contract 2: the tokenizer never looks ahead, chunks equal the whole, and an image is the first latent frame."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from loong_jax.config import DEBUG_TOKENIZER, TokenizerConfig
from loong_jax.tokenizer.autoencoder import abstract_autoencoder

FRAMES = 17
LOCAL_TOKENIZER = dataclasses.replace(DEBUG_TOKENIZER, encoder_res_blocks=(1, 0, 0), encoder_padding="edge")


@pytest.fixture(scope="module", params=[DEBUG_TOKENIZER, LOCAL_TOKENIZER], ids=["usual", "local"])
def model(request):
    """Random parameters everywhere: fresh kernels ignore earlier frames and would hide a leak."""
    graphdef, shapes = abstract_autoencoder(request.param)
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    values = [0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return nnx.merge(graphdef, jax.tree.unflatten(structure, values))


@pytest.fixture(scope="module")
def video():
    return jax.random.uniform(jax.random.key(1), (1, FRAMES, 32, 32, 3), minval=-1, maxval=1)


def test_a_later_frame_changes_no_earlier_id(model, video):
    ids = np.asarray(model.encode(video)[0])
    assert len(np.unique(ids)) > 5
    for frame in (1, 6, 16):
        changed = np.asarray(model.encode(video.at[:, frame].multiply(-1))[0])
        latent = -(-frame // 4)
        np.testing.assert_array_equal(changed[:, :latent], ids[:, :latent])
        assert (changed[:, latent:] != ids[:, latent:]).any()


@pytest.mark.parametrize("chunk", [4, 16])
def test_chunks_equal_the_whole(model, video, chunk):
    whole, _ = model.encode(video)
    first, past = model.encode(video[:, :1])
    parts = [first]
    for start in range(1, FRAMES, chunk):
        ids, past = model.encode(video[:, start : start + chunk], past)
        parts.append(ids)
    np.testing.assert_array_equal(jnp.concatenate(parts, axis=1), whole)
    pixels, _ = model.decode(whole)
    first, past = model.decode(whole[:, :1])
    parts = [first]
    for start in range(1, whole.shape[1], chunk // 4):
        frames, past = model.decode(whole[:, start : start + chunk // 4], past)
        parts.append(frames)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), pixels, atol=1e-5)


def test_an_image_is_the_first_latent_frame(model, video):
    np.testing.assert_array_equal(model.encode(video[:, :1])[0], model.encode(video)[0][:, :1])


def test_edge_padding_leaves_no_trace_of_the_border(model):
    """A picture of one color has the same latent everywhere; zeros around it would mark the border."""
    flat = jnp.full((1, 5, 32, 32, 3), 0.5)
    latents = np.asarray(model._latents(flat, None)[0])
    is_even = np.abs(latents - latents[:, :, :1, :1]).max() < 1e-5
    assert is_even == (model.encoder.layers[0].padding == "edge")


def test_the_full_size_has_246_million_parameters():
    _, shapes = abstract_autoencoder(TokenizerConfig())
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert abs(count / 246e6 - 1) < 0.005
