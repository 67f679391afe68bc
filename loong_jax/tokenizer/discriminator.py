"""Discriminators: clips or single frames to logits, high for real ones. Not causal; used in training alone.

"residual" is the 3D StyleGAN discriminator of MAGVIT with the blurred down-sampling of MAGVIT-v2 (arXiv 2310.05737,
appendix A.2); "patch" a PatchGAN (arXiv 1611.07004) in three dimensions.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from loong_jax.config import DiscriminatorConfig
from loong_jax.tokenizer.causal_conv import FrameNorm, convolve3d


class Discriminator(nnx.Module):
    """Videos float [b, t, h, w, 3] in [-1, 1] -> logits: [b] for "residual", [b, t2, h2, w2] for "patch".

    Any number of frames will do; height and width are those it was made for. Computes in float32: its gradients have
    gradients (R1).
    """

    def __init__(self, config: DiscriminatorConfig, frame_size: tuple[int, int], rngs: nnx.Rngs):
        widths = [multiplier * config.base_channels for multiplier in config.channel_multipliers]
        self.is_patch = config.kind == "patch"
        if self.is_patch:
            self.stem = _Conv(3, widths[0], stride=2, rngs=rngs)
            pairs = zip(widths, widths[1:], strict=False)
            self.blocks = nnx.List([_PatchBlock(before, width, rngs=rngs) for before, width in pairs])
            self.head = _Conv(widths[-1], 1, out_axis=None, rngs=rngs)
        else:
            self.stem = _Conv(3, config.base_channels, rngs=rngs)
            pairs = zip([config.base_channels, *widths], widths, strict=False)
            self.blocks = nnx.List([_ResidualBlock(before, width, rngs=rngs) for before, width in pairs])
            self.neck = _Conv(widths[-1], widths[-1], rngs=rngs)
            cells = math.prod(-(-size // 2 ** len(widths)) for size in frame_size)
            self.hidden = _Dense(cells * widths[-1], widths[-1], rngs=rngs)
            self.head = _Dense(widths[-1], 1, out_axis=None, rngs=rngs)

    def __call__(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b ..."]:
        x = _leaky(self.stem(video.astype(jnp.float32)))
        for block in self.blocks:
            x = block(x)
        if self.is_patch:
            return self.head(x)[..., 0]
        x = _leaky(self.neck(x)).mean(axis=1)
        return self.head(_leaky(self.hidden(x.reshape(len(x), -1))))[:, 0]


class _Conv(nnx.Module):
    def __init__(self, in_channels, out_channels, *, kernel_size=3, stride=1, out_axis="conv_out", rngs):
        self.stride = stride
        shape = (kernel_size, kernel_size, kernel_size, in_channels, out_channels)
        kernel = nnx.initializers.xavier_uniform()(rngs.params(), shape)
        self.kernel = nnx.Param(kernel, logical_axes=(None, None, None, None, out_axis))
        self.bias = nnx.Param(jnp.zeros(out_channels), logical_axes=(out_axis,)) if kernel_size > 1 else None

    def __call__(self, x):
        kernel = self.kernel[...]
        margin = kernel.shape[0] // 2
        x = jnp.pad(x, ((0, 0), (margin, margin), (0, 0), (0, 0), (0, 0)))
        y = convolve3d(x, kernel, (self.stride,) * 3, ((margin, margin), (margin, margin)))
        return y if self.bias is None else y + self.bias[...][None, None, None, None]


class _Dense(nnx.Module):
    def __init__(self, in_features, out_features, *, out_axis="conv_out", rngs):
        kernel = nnx.initializers.xavier_uniform()(rngs.params(), (in_features, out_features))
        self.kernel = nnx.Param(kernel, logical_axes=(None, out_axis))
        self.bias = nnx.Param(jnp.zeros(out_features), logical_axes=(out_axis,))

    def __call__(self, x):
        return x @ self.kernel[...] + self.bias[...][None]


class _ResidualBlock(nnx.Module):
    def __init__(self, in_channels, out_channels, *, rngs):
        self.first = _Conv(in_channels, out_channels, rngs=rngs)
        self.second = _Conv(out_channels, out_channels, rngs=rngs)
        self.skip = _Conv(in_channels, out_channels, kernel_size=1, rngs=rngs)

    def __call__(self, x):
        y = _leaky(self.second(_blurred_half(_leaky(self.first(x)))))
        return (y + self.skip(_blurred_half(x))) / math.sqrt(2)


class _PatchBlock(nnx.Module):
    def __init__(self, in_channels, out_channels, *, rngs):
        self.conv = _Conv(in_channels, out_channels, stride=2, rngs=rngs)
        self.norm = FrameNorm(out_channels, math.gcd(32, out_channels), activate=False, rngs=rngs)

    def __call__(self, x):
        return _leaky(self.norm(self.conv(x))[0])


def _leaky(x):
    return jax.nn.leaky_relu(x, 0.2)


def _blurred_half(x):
    """Every second sample along time, height and width after the filter [1, 2, 1] / 4; the border is repeated."""
    for axis in (1, 2, 3):
        size = x.shape[axis]
        if size > 1:
            wide = jnp.pad(x, [(1, 1) if dim == axis else (0, 0) for dim in range(5)], mode="edge")
            left, middle, right = (jax.lax.slice_in_dim(wide, i, i + size, 2, axis) for i in range(3))
            x = (left + 2 * middle + right) / 4
    return x


def init_params(config: DiscriminatorConfig, frame_size: tuple[int, int], key: jax.Array) -> dict:
    """Fresh parameters as a nested dict of float32 arrays."""
    return nnx.to_pure_dict(nnx.state(Discriminator(config, frame_size, nnx.Rngs(key))))


def abstract_discriminator(config: DiscriminatorConfig, frame_size: tuple[int, int]) -> tuple[nnx.GraphDef, dict]:
    """The module's structure, and the logical axes of every parameter in the structure of ``init_params``."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Discriminator(config, frame_size, nnx.Rngs(0))))
    axes = jax.tree.map(lambda p: p.logical_axes, state, is_leaf=lambda p: isinstance(p, nnx.Variable))
    return graphdef, nnx.to_pure_dict(axes)
