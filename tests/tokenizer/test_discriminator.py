"""The discriminators: their shapes, their blur, and that each clip is judged alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import ndimage

from loong_jax.config import DiscriminatorConfig
from loong_jax.tokenizer import discriminator
from loong_jax.tokenizer.discriminator import Discriminator


@pytest.mark.parametrize("shape", [(2, 5, 8, 6, 3), (1, 1, 7, 4, 2), (1, 4, 1, 3, 1)], ids=str)
def test_blurred_half_is_every_second_sample_of_the_filtered_array(shape):
    x = np.random.default_rng(0).normal(size=shape)
    expected = x
    for axis in (1, 2, 3):
        if shape[axis] > 1:
            expected = ndimage.correlate1d(expected, [0.25, 0.5, 0.25], axis=axis, mode="nearest")
            expected = expected.take(range(0, shape[axis], 2), axis=axis)
    np.testing.assert_allclose(discriminator._blurred_half(jnp.asarray(x, jnp.float32)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "logits"), [pytest.param("residual", (2,), marks=pytest.mark.slow), ("patch", (2, 3, 4, 4))]
)
def test_clips_and_single_frames_are_judged_one_by_one(kind, logits):
    config = DiscriminatorConfig(kind=kind, base_channels=4, channel_multipliers=(1, 2))
    model = Discriminator(config, (16, 16), nnx.Rngs(0))
    clips = jax.random.uniform(jax.random.key(0), (2, 9, 16, 16, 3), minval=-1, maxval=1)
    judged = model(clips)
    assert judged.shape == logits and judged.dtype == jnp.float32 and judged.std() > 0
    np.testing.assert_allclose(model(clips[1:]), judged[1:], atol=1e-5)
    assert model(clips[:, :1]).shape == (logits if kind == "residual" else (2, 1, 4, 4))


def test_parameters_have_logical_axes_and_the_full_size_is_that_of_the_paper():
    config = DiscriminatorConfig()
    _, axes = discriminator.abstract_discriminator(config, (128, 128))
    shapes = jax.eval_shape(lambda key: discriminator.init_params(config, (128, 128), key), jax.random.key(0))
    jax.tree.map(
        lambda x, names: np.testing.assert_equal(len(names), x.ndim), shapes, axes, is_leaf=lambda x: x is None
    )
    # By hand: convolutions 3 -> 128, blocks of two 3x3x3 kernels and a skip, the neck, and 4x4 cells of 512 channels.
    widths = [128, 256, 512, 512, 512, 512]
    count = 27 * 3 * 128 + 128
    for before, after in zip(widths, widths[1:], strict=False):
        count += 27 * before * after + after + 27 * after * after + after + before * after
    count += 27 * 512 * 512 + 512 + 16 * 512 * 512 + 512 + 512 + 1
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
