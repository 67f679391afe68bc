"""Attention by JAX's splash kernels for TPU, which skip the blocks that the mask leaves empty."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jaxtyping import Array, Float

from loong_jax.models.attention_mask import Mask

_LANES = 128  # lengths and blocks are multiples of it
_LARGEST_BLOCK = 768


def splash_attention(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b t k h"],
    value: Float[Array, "b t k h"],
    mask: Mask,
    interpret: bool = False,
) -> Float[Array, "b t n h"]:
    """Scaled dot-product attention, padded to a multiple of 128 places; ``interpret`` runs the kernels on a CPU."""
    (b, t, n, h), rest = query.shape, -query.shape[1] % _LANES
    segments = mask.segment_ids
    if rest and segments is None and not mask.causal:  # a causal mask hides the places at the end by itself
        segments = jnp.ones((b, t), jnp.int32)
    if segments is not None:
        segments = jnp.pad(segments, ((0, 0), (0, rest)))
        segments = splash_attention_kernel.SegmentIds(segments, segments)
    padded = (jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, rest), (0, 0))) for x in (query * h**-0.5, key, value))
    out = jax.vmap(_kernel(mask, n, t + rest, interpret))(*padded, segments)
    return out[:, :, :t].swapaxes(1, 2)


def _kernel(mask: Mask, num_heads: int, length: int, interpret: bool):
    """One sequence's attention, [n, t, h] x [k, t, h] x [k, t, h] x its segment ids -> [n, t, h]."""
    shape = (length, length)
    if mask.window:
        shown = splash_attention_mask.LocalMask(shape, (mask.window - 1, 0), offset=0)
    elif mask.causal:
        shown = splash_attention_mask.CausalMask(shape)
    else:
        shown = splash_attention_mask.FullMask(shape)
    block = max(size for size in range(_LANES, _LARGEST_BLOCK + 1, _LANES) if length % size == 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    return splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([shown] * num_heads),
        block_sizes=splash_attention_kernel.BlockSizes(**{f"block_{name}": block for name in names}),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
