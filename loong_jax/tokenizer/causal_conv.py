"""Convolutions that never look at a later frame, and the layers made of them.

Every layer is called as ``layer(x, past) -> (y, past)``. ``past`` is what the layer must remember of the frames before
``x``: ``None`` at the start of a video, else what the call on the frames before returned. Its shape never depends on
how many frames went by, so a video of any length is processed in chunks of constant memory, with the result of the
whole. The first chunk of a video has ``1 + stride * m`` frames, each later one ``stride * m``.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from loong_jax.sharding import constrain

Past = Any  # a pytree of arrays; None at the start of a video


class CausalConv3d(nnx.Module):
    """3D convolution padded in front in time, and "SAME" in space, there with zeros or with the border's values.

    The kernel starts with all its weight on the newest frame ("inflated", MAGVIT-v2 appendix A.2): trained on single
    frames it is a 2D convolution, and a video model starts as that image model applied to every frame.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: tuple[int, int, int] = (3, 3, 3),
        strides: tuple[int, int, int] = (1, 1, 1),
        use_bias: bool = True,
        padding: str = "zeros",
        out_axis: str | None = "conv_out",
        compute_dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.strides = strides
        self.padding = padding
        self.compute_dtype = compute_dtype
        newest = nnx.initializers.lecun_normal()(rngs.params(), (*kernel_size[1:], in_channels, out_channels))
        older = jnp.zeros((kernel_size[0] - 1, *newest.shape))
        self.kernel = nnx.Param(jnp.concatenate([older, newest[None]]), logical_axes=(None, None, None, None, out_axis))
        self.bias = nnx.Param(jnp.zeros(out_channels), logical_axes=(out_axis,)) if use_bias else None

    def __call__(self, x: Float[Array, "b t h w c"], past: Past = None) -> tuple[Float[Array, "b t2 h2 w2 c2"], Past]:
        kernel = self.kernel[...].astype(self.compute_dtype)
        stride, memory = self.strides[0], kernel.shape[0] - 1
        x = x.astype(self.compute_dtype)
        if past is None:
            past = jnp.zeros((x.shape[0], memory, *x.shape[2:]), x.dtype)
            # At the start of a video the oldest taps of the kernel may meet nothing but padding.
            num_outputs = (x.shape[1] - 1) // stride + 1
            idle = max(0, memory - stride * (num_outputs - 1))
            frames, kernel = jnp.concatenate([past[:, idle:], x], axis=1), kernel[idle:]
        else:
            # The window of the next output starts a stride after the last one's, past the oldest remembered frames.
            frames = jnp.concatenate([past[:, stride - 1 :], x], axis=1)
        pads = jax.lax.padtype_to_pads(x.shape[2:4], kernel.shape[1:3], self.strides[1:], "SAME")
        if self.padding == "edge":
            frames = jnp.pad(frames, ((0, 0), (0, 0), *pads, (0, 0)), mode="edge")
            pads = ((0, 0), (0, 0))
        y = convolve3d(frames, kernel, self.strides, pads)
        y = constrain(y, "batch", None, None, "width", None)
        if self.bias is not None:
            y = y + self.bias[...].astype(y.dtype)[None, None, None, None]
        remembered = jnp.concatenate([past, x], axis=1)[:, x.shape[1] :]
        return y, remembered


def convolve3d(
    frames: Float[Array, "b t h w c"],
    kernel: Float[Array, "kt kh kw c c2"],
    strides: tuple[int, int, int],
    pads: tuple[tuple[int, int], tuple[int, int]],
) -> Float[Array, "b t2 h2 w2 c2"]:
    """3D convolution with zeros around height and width as ``pads`` says, and none around time."""
    dimensions = ("NTHWC", "THWIO", "NTHWC")
    return jax.lax.platform_dependent(
        frames,
        kernel,
        cpu=lambda frames, kernel: _convolve_by_taps(frames, kernel, strides, pads),
        default=lambda frames, kernel: jax.lax.conv_general_dilated(
            frames, kernel, strides, ((0, 0), *pads), dimension_numbers=dimensions
        ),
    )


def _convolve_by_taps(frames, kernel, strides, pads):
    """The same convolution as a sum of 2D ones: XLA's 3D convolution on CPU runs at half their speed or less."""
    num_outputs = (frames.shape[1] - kernel.shape[0]) // strides[0] + 1
    y = 0.0
    for tap in range(kernel.shape[0]):
        x = frames[:, tap : tap + (num_outputs - 1) * strides[0] + 1 : strides[0]]
        y = y + _convolve2d(x.reshape(-1, *x.shape[2:]), kernel[tap], strides[1:], pads)
    return y.reshape(frames.shape[0], num_outputs, *y.shape[1:])


def _convolve2d(x, kernel, strides, pads):
    """2D convolution in the form that is fastest in XLA on CPU, by two to five times."""
    if kernel.shape[:2] == strides == (1, 1):
        return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)
    pads = tuple(tuple(pad) for pad in pads)
    return _unit_stride(x, kernel, pads) if strides == (1, 1) else _padded(x, kernel, strides, pads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _unit_stride(x, kernel, pads):
    return _padded(x, kernel, (1, 1), pads)


def _unit_stride_forward(x, kernel, pads):
    return _unit_stride(x, kernel, pads), (x, kernel)


def _unit_stride_backward(pads, residuals, gradient):
    """The kernel's gradient as one matrix product for each of its places."""
    x, kernel = residuals
    sizes = kernel.shape[:2]
    sides = tuple((size - 1 - before, size - 1 - after) for size, (before, after) in zip(sizes, pads, strict=True))
    height, width = gradient.shape[1:3]
    wide, rows = jnp.pad(x, ((0, 0), *pads, (0, 0))), gradient.reshape(-1, gradient.shape[-1])

    def product(row, column):
        seen = wide[:, row : row + height, column : column + width]
        return seen.reshape(-1, x.shape[-1]).T @ rows

    products = [[product(row, column) for column in range(kernel.shape[1])] for row in range(kernel.shape[0])]
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    return _unit_stride(gradient, turned, sides), jnp.stack([jnp.stack(row) for row in products])


_unit_stride.defvjp(_unit_stride_forward, _unit_stride_backward)


def _padded(x, kernel, strides, pads):
    is_bare = not any(side for pad in pads for side in pad)
    if is_bare:  # slow without any padding: ask for a column too many
        pads = ((0, 0), (0, strides[1]))
    y = jax.lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y[:, :, :-1] if is_bare else y


class FrameNorm(nnx.Module):
    """Group normalization over each frame alone, then swish if ``activate``; remembers nothing.

    Statistics over time would leak later frames into earlier ones.
    """

    def __init__(self, channels: int, groups: int, *, activate: bool, rngs: nnx.Rngs):
        self.groups = groups
        self.activate = activate
        self.scale = nnx.Param(jnp.ones(channels), logical_axes=(None,))
        self.bias = nnx.Param(jnp.zeros(channels), logical_axes=(None,))

    def __call__(self, x: Float[Array, "b t h w c"], past: Past = None) -> tuple[Float[Array, "b t h w c"], Past]:
        channels = (1, 1, 1, 1, -1)
        y = _normalized(x, self.groups) * self.scale[...].reshape(channels) + self.bias[...].reshape(channels)
        return (jax.nn.swish(y) if self.activate else y).astype(x.dtype), ()


def _normalized(x, groups):
    """float32, with mean 0 and variance 1 in every group of channels of every frame."""
    grouped = x.astype(jnp.float32).reshape(*x.shape[:4], groups, -1)
    mean = grouped.mean(axis=(2, 3, 5), keepdims=True)
    variance = jnp.square(grouped - mean).mean(axis=(2, 3, 5), keepdims=True)
    return ((grouped - mean) * jax.lax.rsqrt(variance + 1e-6)).reshape(x.shape)


class AdaptiveNorm(nnx.Module):
    """Group normalization of each frame, scaled and shifted by what its codes say (MAGVIT-v2, appendix A.2).

    Scale and shift are linear in the standard deviation and the mean over the frame's codes; they start at 1 and 0.
    Remembers nothing; unlike the other layers it is called with the codes that the decoder started from.
    """

    def __init__(self, channels: int, code_dim: int, groups: int):
        self.groups = groups
        zeros = jnp.zeros((code_dim, channels))
        self.scale_kernel = nnx.Param(zeros, logical_axes=(None, None))
        self.scale_bias = nnx.Param(jnp.ones(channels), logical_axes=(None,))
        self.shift_kernel = nnx.Param(zeros, logical_axes=(None, None))
        self.shift_bias = nnx.Param(jnp.zeros(channels), logical_axes=(None,))

    def __call__(
        self, x: Float[Array, "b t h w c"], codes: Float[Array, "b t2 h2 w2 d"], is_start: bool
    ) -> Float[Array, "b t h w c"]:
        codes = codes.astype(jnp.float32)
        mean = codes.mean(axis=(2, 3))
        deviation = jnp.sqrt(jnp.square(codes - mean[:, :, None, None]).mean(axis=(2, 3)) + 1e-6)
        scale = deviation @ self.scale_kernel[...] + self.scale_bias[...][None, None]
        shift = mean @ self.shift_kernel[...] + self.shift_bias[...][None, None]
        scale, shift = (_for_each_frame(style, x.shape[1], is_start) for style in (scale, shift))
        return (_normalized(x, self.groups) * scale + shift).astype(x.dtype)


def _for_each_frame(style, num_frames, is_start):
    """[b, latent frames, c] -> [b, frames, 1, 1, c]; the first latent frame of a video stands for one frame."""
    each = max(1, (num_frames - is_start) // max(1, style.shape[1] - is_start))
    style = style.repeat(each, axis=1)
    return (style[:, each - 1 :] if is_start else style)[:, :, None, None]


class ResBlock(nnx.Module):
    """Norm, swish, convolution, twice, around a skip (MAGVIT-v2, appendix A.2)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int,
        *,
        remat: bool,
        padding: str = "zeros",
        compute_dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        conv = dict(use_bias=False, padding=padding, compute_dtype=compute_dtype, rngs=rngs)
        self.remat = remat
        self.body = CausalStack(
            [
                FrameNorm(in_channels, groups, activate=True, rngs=rngs),
                CausalConv3d(in_channels, out_channels, **conv),
                FrameNorm(out_channels, groups, activate=True, rngs=rngs),
                CausalConv3d(out_channels, out_channels, **conv),
            ]
        )
        self.skip = (
            CausalConv3d(in_channels, out_channels, kernel_size=(1, 1, 1), **conv)
            if in_channels != out_channels
            else None
        )

    def __call__(self, x: Float[Array, "b t h w c"], past: Past = None) -> tuple[Float[Array, "b t h w c2"], Past]:
        body = jax.checkpoint(lambda module, x, past: module(x, past)) if self.remat else CausalStack.__call__
        y, past = body(self.body, x, past)
        skip = x if self.skip is None else self.skip(x)[0]
        return skip + y, past


class Upsample(nnx.Module):
    """Nearest-neighbour repetition, then a convolution; in time the first frame stays one frame."""

    def __init__(self, channels: int, strides: tuple[int, int, int], *, compute_dtype: jnp.dtype, rngs: nnx.Rngs):
        self.strides = strides
        self.conv = CausalConv3d(channels, channels, compute_dtype=compute_dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t h w c"], past: Past = None) -> tuple[Float[Array, "b t2 h2 w2 c"], Past]:
        time, height, width = self.strides
        x = x.repeat(time, axis=1).repeat(height, axis=2).repeat(width, axis=3)
        if past is None:
            x = x[:, time - 1 :]
        return self.conv(x, past)


class CausalStack(nnx.Module):
    """Layers one after the other; remembers what each of them does, in order."""

    def __init__(self, layers: list[nnx.Module]):
        self.layers = nnx.List(layers)

    def __call__(self, x: Float[Array, "b t h w c"], past: Past = None) -> tuple[Float[Array, "b t2 h2 w2 c2"], Past]:
        return run_layers(self.layers, x, past)


def run_layers(layers: Sequence[nnx.Module], x: Array, past: Past, **of_adaptive_norm: Any) -> tuple[Array, Past]:
    """Call layers one after the other, each with what it remembers; an ``AdaptiveNorm`` also gets its arguments.

    At the start of a video, blocks that are alike and rematerialized run in a loop: a compiler sees one of them.
    """
    pasts = [None] * len(layers) if past is None else past
    remembered = []
    while len(remembered) < len(layers):
        index = len(remembered)
        layer = layers[index]
        alike = list(itertools.takewhile(_can_loop, layers[index:])) if past is None else []
        if len(alike) > 1:
            x, loop_pasts = _loop(alike, x)
            remembered += loop_pasts
        elif isinstance(layer, AdaptiveNorm):
            x = layer(x, **of_adaptive_norm)
            remembered.append(())
        else:
            x, layer_past = layer(x, pasts[index])
            remembered.append(layer_past)
    return x, remembered


def _can_loop(layer: nnx.Module) -> bool:
    """Neighbours of this kind have the same width, as they have no skip of their own."""
    return isinstance(layer, ResBlock) and layer.remat and layer.skip is None


def _loop(blocks: list["ResBlock"], x: Array) -> tuple[Array, list[Past]]:
    graphdef, _ = nnx.split(blocks[0])
    stacked = jax.tree.map(lambda *params: jnp.stack(params), *[nnx.state(block) for block in blocks])
    x, pasts = jax.lax.scan(lambda x, params: nnx.merge(graphdef, params)(x), x, stacked)
    return x, [jax.tree.map(lambda part, index=index: part[index], pasts) for index in range(len(blocks))]
