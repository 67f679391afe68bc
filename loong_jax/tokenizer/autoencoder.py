"""The causal 3D-conv VQ autoencoder: pixels -> latents -> codes -> pixels.

The layout is MAGVIT-v2's (arXiv 2310.05737, appendix A.2) with strided convolutions down and nearest + convolution up;
with the default config it has 246M parameters, as Loong's tokenizer.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from loong_jax.config import TokenizerConfig
from loong_jax.tokenizer.causal_conv import (
    AdaptiveNorm,
    CausalConv3d,
    CausalStack,
    FrameNorm,
    Past,
    ResBlock,
    Upsample,
    run_layers,
)
from loong_jax.tokenizer.quantizer import Quantized, Quantizer


class Reconstruction(NamedTuple):
    """Output of a training forward pass: pixels in [-1, 1] and what the quantizer gave."""

    video: Float[Array, "b t h w 3"]
    quantized: Quantized


class Autoencoder(nnx.Module):
    """Encoder, quantizer and decoder.

    Videos here are float [b, t, h, w, 3] in [-1, 1] with t = 1 + m x temporal_factor at the start of a video, and
    m x temporal_factor in a later chunk; see ``causal_conv`` for ``past``.
    """

    def __init__(self, config: TokenizerConfig, rngs: nnx.Rngs):
        self.patch_size = config.patch_size
        self.encoder = _encoder(config, rngs)
        self.quantizer = Quantizer(config.quantizer, rngs)
        self.decoder = Decoder(config, rngs)

    def __call__(self, video: Float[Array, "b t h w 3"], quantize: Array | bool = True) -> Reconstruction:
        latents, _ = self._latents(video, None)
        quantized = self.quantizer(latents, quantize)
        return Reconstruction(self._pixels(quantized.latents, None)[0], quantized)

    def encode(self, video: Float[Array, "b t h w 3"], past: Past = None) -> tuple[Int[Array, "b t2 h2 w2"], Past]:
        """Ids of a video, or of its next chunk."""
        latents, past = self._latents(video, past)
        return self.quantizer(latents).ids, past

    def decode(self, ids: Int[Array, "b t h w"], past: Past = None) -> tuple[Float[Array, "b t2 h2 w2 3"], Past]:
        """Pixels in [-1, 1] (not clipped) of ids, or of their next chunk."""
        return self._pixels(self.quantizer.codes(ids), past)

    def reencoding_error(self, decoded: Float[Array, "b t h w 3"], ids: Int[Array, "b t2 h2 w2"]) -> Float[Array, ""]:
        """Mean squared distance between the latents of pixels and the codes that they were decoded from."""
        latents, _ = self._latents(decoded, None)
        return jnp.square(self.quantizer.comparable(latents) - self.quantizer.codes(ids)).mean()

    def _latents(self, video, past):
        p = self.patch_size
        patches = rearrange(video, "b t (h p) (w q) c -> b t h w (p q c)", p=p, q=p)
        return self.encoder(patches, past)

    def _pixels(self, latents, past):
        patches, past = self.decoder(latents, past)
        p = self.patch_size
        video = rearrange(patches, "b t h w (p q c) -> b t (h p) (w q) c", p=p, q=p)
        return video.astype(jnp.float32), past


def _compute_dtype(config: TokenizerConfig) -> jnp.dtype:
    if config.compute_dtype == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(config.compute_dtype)


def _encoder(config: TokenizerConfig, rngs: nnx.Rngs) -> CausalStack:
    widths = [multiplier * config.base_channels for multiplier in config.channel_multipliers]
    conv = dict(padding=config.encoder_padding, compute_dtype=_compute_dtype(config), rngs=rngs)
    block = dict(groups=config.norm_groups, remat=config.remat, **conv)
    strides = list(zip(config.temporal_strides, config.spatial_strides, config.spatial_strides, strict=True))
    num_blocks = config.encoder_res_blocks or (config.num_res_blocks,) * len(widths)
    layers = [CausalConv3d(3 * config.patch_size**2, widths[0], use_bias=False, **conv)]
    channels = widths[0]
    for level, width in enumerate(widths):
        if level > 0:
            # A level's width comes from its first block, or from the convolution before it if it has none.
            out = channels if num_blocks[level] else width
            layers.append(CausalConv3d(channels, out, strides=strides[level - 1], **conv))
            channels = out
        for _ in range(num_blocks[level]):
            layers.append(ResBlock(channels, width, **block))
            channels = width
    if not config.encoder_res_blocks:
        layers += [ResBlock(channels, channels, **block) for _ in range(config.num_mid_blocks)]
    # Not activated: latents that vary around zero point in all directions, as codes on a sphere need.
    layers.append(FrameNorm(channels, config.norm_groups, activate=False, rngs=rngs))
    layers.append(CausalConv3d(channels, config.quantizer.dim, kernel_size=(1, 1, 1), out_axis=None, **conv))
    return CausalStack(layers)


class Decoder(nnx.Module):
    """Codes to patches of pixels; the last layer is the convolution that makes the pixels."""

    def __init__(self, config: TokenizerConfig, rngs: nnx.Rngs):
        widths = [multiplier * config.base_channels for multiplier in config.channel_multipliers]
        conv = dict(compute_dtype=_compute_dtype(config), rngs=rngs)
        block = dict(groups=config.norm_groups, remat=config.remat, **conv)
        strides = list(zip(config.temporal_strides, config.spatial_strides, config.spatial_strides, strict=True))
        dim, channels = config.quantizer.dim, widths[-1]
        layers = [CausalConv3d(dim, channels, **conv)]
        layers += [ResBlock(channels, channels, **block) for _ in range(config.num_mid_blocks)]
        for level, width in reversed(list(enumerate(widths))):
            if config.decoder_norm == "adaptive":
                layers.append(AdaptiveNorm(channels, dim, config.norm_groups))
            for _ in range(config.num_res_blocks):
                layers.append(ResBlock(channels, width, **block))
                channels = width
            if level > 0:
                layers.append(Upsample(channels, strides[level - 1], **conv))
        layers.append(FrameNorm(channels, config.norm_groups, activate=True, rngs=rngs))
        layers.append(CausalConv3d(channels, 3 * config.patch_size**2, out_axis=None, **conv))
        self.layers = nnx.List(layers)

    def __call__(
        self, codes: Float[Array, "b t h w d"], past: Past = None
    ) -> tuple[Float[Array, "b t2 h2 w2 c"], Past]:
        return run_layers(self.layers, codes, past, codes=codes, is_start=past is None)


def abstract_autoencoder(config: TokenizerConfig) -> tuple[nnx.GraphDef, dict]:
    """The module's structure and the shapes of its parameters, without allocating any."""
    graphdef, params = nnx.split(nnx.eval_shape(lambda: Autoencoder(config, nnx.Rngs(0))))
    return graphdef, nnx.to_pure_dict(params)


def init_params(config: TokenizerConfig, key: jax.Array) -> dict:
    """Fresh parameters as a nested dict of float32 arrays."""
    return nnx.to_pure_dict(nnx.state(Autoencoder(config, nnx.Rngs(key))))


def matrix_axes(params: dict) -> dict:
    """Input and output axes of every convolution kernel, for optimizers that treat them as matrices; else None."""
    return jax.tree.map(lambda p: ((0, 1, 2, 3), (4,)) if p.ndim == 5 else None, params)


def logical_axes(config: TokenizerConfig) -> dict:
    """Logical axis names of every parameter, in the structure of ``init_params``."""
    state = nnx.state(nnx.eval_shape(lambda: Autoencoder(config, nnx.Rngs(0))))
    axes = jax.tree.map(lambda p: p.logical_axes, state, is_leaf=lambda p: isinstance(p, nnx.Variable))
    return nnx.to_pure_dict(axes)
