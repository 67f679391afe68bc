"""Attention in plain XLA operations that reads only what the mask can allow, a block of queries at a time."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from loong_jax.models.attention_mask import Mask
from loong_jax.models.dense_attention import MASKED, rows_by_head, rows_by_place

_LONGEST_KEPT = 2048  # places whose weights are kept, which is a tenth faster


def blocked_attention(
    query: Float[Array, "b t n h"], key: Float[Array, "b t k h"], value: Float[Array, "b t k h"], mask: Mask
) -> Float[Array, "b t n h"]:
    """Scaled dot-product attention; a block of queries reads the keys up to its last one, and within the window.

    For the gradients of long sequences every block computes its weights again: only queries, keys and values are kept.
    """
    (_, t, n, _), k, size = query.shape, key.shape[2], _block_size(query.shape[1])
    # Batch and heads are one axis: XLA on CPU is slower at products with two.
    rows = _merged(rows_by_head(query, k))
    key, value = (_merged(x.swapaxes(1, 2)) for x in (key, value))

    def block(rows, key, value, start):
        stop = min(start + size, t)
        seen = slice(max(0, start - mask.window + 1) if mask.window else 0, stop if mask.causal else t)
        shared = slice(start * n // k, stop * n // k)
        return _attend(rows[:, shared], key[:, seen], value[:, seen], _part(mask, slice(start, stop), seen))

    if t > _LONGEST_KEPT:
        block = jax.checkpoint(block, static_argnums=3)
    out = jnp.concatenate([block(rows, key, value, start) for start in range(0, t, size)], axis=1)
    return rows_by_place(out.reshape(-1, k, *out.shape[1:]), query.shape)


def _part(mask: Mask, queries: slice, keys: slice) -> Bool[Array, "b q s"]:
    places = (jnp.arange(part.start, part.stop) for part in (queries, keys))
    segments = mask.segment_ids
    return mask.allowed(*places, *((None, None) if segments is None else (segments[:, queries], segments[:, keys])))


def _attend(
    rows: Float[Array, "m q h"], key: Float[Array, "m s h"], value: Float[Array, "m s h"], allowed: Bool[Array, "b p s"]
) -> Float[Array, "m q h"]:
    """Rows are the places of a block times what shares a key-value head; m is batch times these heads."""
    scores = jnp.einsum("mqh,msh->mqs", rows, key, preferred_element_type=jnp.float32) * rows.shape[-1] ** -0.5
    places, length = allowed.shape[1:]
    by_place = scores.reshape(len(allowed), -1, places, scores.shape[1] // places, length)
    scores = jnp.where(allowed[:, None, :, None], by_place, MASKED).reshape(scores.shape)
    return jnp.einsum("mqs,msh->mqh", jax.nn.softmax(scores, axis=-1).astype(value.dtype), value)


def _block_size(length: int) -> int:
    """About an eighth of the length: smaller blocks skip more of the mask, and take longer to compile."""
    return min(512, max(128, -(-length // 512) * 64))


def _merged(x):
    return x.reshape(-1, *x.shape[2:])
