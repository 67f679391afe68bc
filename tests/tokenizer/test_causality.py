"""Contract 2: the tokenizer never looks ahead, chunks equal the whole, and an image is the first latent frame."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from loong_jax.config import DEBUG_TOKENIZER, QuantizerConfig, TokenizerConfig
from loong_jax.tokenizer.autoencoder import abstract_autoencoder

FRAMES = 17
# The layers of the 246M model, four channels wide where it has 128.
FULL_LAYERS = TokenizerConfig(base_channels=4, norm_groups=4, quantizer=QuantizerConfig(num_codes=64))
TOKENIZERS = {
    "local": dataclasses.replace(DEBUG_TOKENIZER, encoder_res_blocks=(1, 0, 0), encoder_padding="edge"),
    "full": FULL_LAYERS,
    "full, adaptive": dataclasses.replace(FULL_LAYERS, decoder_norm="adaptive"),
}


@pytest.fixture(scope="module", params=TOKENIZERS.values(), ids=TOKENIZERS.keys())
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


encode = jax.jit(lambda model, video, past=None: model.encode(video, past))
decode = jax.jit(lambda model, ids, past=None: model.decode(ids, past))


def adversarial(video, frame):
    """Changes of one frame that a leak would show most: its sign, its size, noise, and what no camera makes."""
    yield video.at[:, frame].multiply(-1)
    yield video.at[:, frame].set(1e4)
    yield video.at[:, frame].set(jnp.sign(jax.random.normal(jax.random.key(frame), video[:, frame].shape)))


@pytest.mark.parametrize("frame", [1, 4, 5, 6, 12, 16])
def test_a_later_frame_changes_no_earlier_id_nor_pixel(model, video, frame):
    ids = np.asarray(encode(model, video)[0])
    assert len(np.unique(ids)) > 5
    latent = -(-frame // 4)
    for changed in adversarial(video, frame):
        other = np.asarray(encode(model, changed)[0])
        np.testing.assert_array_equal(other[:, :latent], ids[:, :latent])
        assert (other[:, latent:] != ids[:, latent:]).any()
    pixels = np.asarray(decode(model, ids)[0])
    changed = ids.copy()
    changed[:, latent] = (changed[:, latent] + 1) % 64
    others = np.asarray(decode(model, changed)[0])
    start = 1 + 4 * (latent - 1)
    np.testing.assert_array_equal(others[:, :start], pixels[:, :start])
    assert (others[:, start:] != pixels[:, start:]).any()


@pytest.mark.parametrize("chunk", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_chunks_equal_the_whole(model, video, chunk):
    """Chunks of 1 and 4 latent frames, 4 and 16 frames, after the first alone; streams have tests of other sizes."""
    whole, _ = encode(model, video)
    first, past = encode(model, video[:, :1])
    parts, shapes = [first], set()
    for start in range(1, FRAMES, 4 * chunk):
        ids, past = encode(model, video[:, start : start + 4 * chunk], past)
        parts.append(ids)
        shapes.add(str(jax.tree.map(jnp.shape, past)))
    np.testing.assert_array_equal(jnp.concatenate(parts, axis=1), whole)
    pixels, _ = decode(model, whole)
    first, past = decode(model, whole[:, :1])
    parts = [first]
    for start in range(1, whole.shape[1], chunk):
        frames, past = decode(model, whole[:, start : start + chunk], past)
        parts.append(frames)
    scale = np.abs(pixels).max()  # random weights make large pixels
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1) / scale, pixels / scale, atol=1e-5)
    assert len(shapes) == 1


def test_an_image_is_the_first_latent_frame(model, video):
    np.testing.assert_array_equal(encode(model, video[:, :1])[0], encode(model, video)[0][:, :1])


def test_edge_padding_leaves_no_trace_of_the_border(model):
    """A picture of one color has the same latent everywhere; zeros around it would mark the border."""
    flat = jnp.full((1, 5, 32, 32, 3), 0.5)
    latents = np.asarray(model._latents(flat, None)[0])
    is_even = np.abs(latents - latents[:, :, :1, :1]).max() < 1e-5
    assert is_even == (model.encoder.layers[0].padding == "edge")


@pytest.mark.parametrize("norm", ["group", "adaptive"])
def test_the_full_size_has_246_million_parameters_and_the_shapes_of_the_paper(norm):
    graphdef, shapes = abstract_autoencoder(TokenizerConfig(decoder_norm=norm))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert abs(count / 246e6 - 1) < 0.005
    for frames, latent_frames in ((1, 1), (17, 5), (65, 17)):
        video = jax.ShapeDtypeStruct((1, frames, 128, 128, 3), jnp.float32)
        model = nnx.merge(graphdef, shapes)
        ids, _ = nnx.eval_shape(lambda model, video: model.encode(video), model, video)
        assert ids.shape == (1, latent_frames, 16, 16)
        pixels, _ = nnx.eval_shape(lambda model, ids: model.decode(ids), model, ids)
        assert pixels.shape == video.shape


def test_a_model_trained_on_images_draws_the_same_frame_in_a_video(video):
    """Inflation: with the older taps at 0, as image training leaves them, every frame is drawn as it was alone."""
    config = dataclasses.replace(DEBUG_TOKENIZER, temporal_strides=(1, 1))
    graphdef, shapes = abstract_autoencoder(config)
    rng = np.random.default_rng(0)

    def trained_on_images(leaf):
        value = 0.3 * rng.normal(size=leaf.shape).astype(np.float32)
        if leaf.ndim == 5:
            value[:-1] = 0
        return value

    model = nnx.merge(graphdef, jax.tree.map(trained_on_images, shapes))
    frames = video[0, :5, None]  # five images
    image_ids = encode(model, frames)[0]
    np.testing.assert_array_equal(encode(model, video[:, :5])[0][0], image_ids[:, 0])
    alone, together = decode(model, image_ids)[0][:, 0], decode(model, image_ids.swapaxes(0, 1))[0][0]
    np.testing.assert_allclose(together, alone, atol=1e-4)
