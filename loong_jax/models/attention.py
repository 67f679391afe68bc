"""Attention and its masks. True in a mask means: attend."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_MASKED = jnp.finfo(jnp.float32).min
_BLOCK = 64  # slots of a cache that are read together


def attention(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b s k h"],
    value: Float[Array, "b s k h"],
    mask: Bool[Array, "b t s"],
) -> Float[Array, "b t n h"]:
    """Scaled dot-product attention; n query heads share k key-value heads (n a multiple of k); softmax in float32.

    A query that may attend nothing (padding) gets the mean of all values.
    """
    rows, key, value = _rows_by_head(query, key.shape[2]), key.swapaxes(1, 2), value.swapaxes(1, 2)
    weights = jax.nn.softmax(_scores(rows, key, mask), axis=-1).astype(value.dtype)
    return _by_place(jnp.einsum("bkqs,bksh->bkqh", weights, value), query.shape)


def cached_attention(
    query: Float[Array, "b t n h"],
    keys: Float[Array, "layers b k s h"],
    values: Float[Array, "layers b k s h"],
    layer: Int[Array, ""] | int,
    mask: Bool[Array, "b t s"],
    num_filled: Int[Array, ""] | int,
) -> Float[Array, "b t n h"]:
    """The same over one layer of a cache, of which only the first ``num_filled`` slots are read.

    Some slots at a time, with a softmax that is corrected as larger scores turn up (arXiv 1805.02867): early tokens
    read little, and no layer is copied out of the cache.
    """
    slots, heads = keys.shape[3], keys.shape[2]
    size = min(_BLOCK, slots)
    rows = _rows_by_head(query, heads)

    def add_block(index, carry):
        largest, total, out = carry
        start = jnp.minimum(index * size, slots - size)  # the last block may overlap the one before

        def block_of(cache):
            block = (1, *cache.shape[1:3], size, cache.shape[4])
            return jax.lax.dynamic_slice(cache, (layer, 0, 0, start, 0), block)[0].astype(query.dtype)

        is_new = start + jnp.arange(size) >= index * size
        seen = jax.lax.dynamic_slice_in_dim(mask, start, size, axis=2) & is_new[None, None]
        scores = _scores(rows, block_of(keys), seen)
        largest, before = jnp.maximum(largest, scores.max(axis=-1, keepdims=True)), largest
        weights, kept = jnp.exp(scores - largest), jnp.exp(before - largest)
        new = jnp.einsum(
            "bkqs,bksh->bkqh", weights.astype(query.dtype), block_of(values), preferred_element_type=jnp.float32
        )
        return largest, kept * total + weights.sum(axis=-1, keepdims=True), kept * out + new

    column = (*rows.shape[:3], 1)
    start = jnp.full(column, _MASKED), jnp.zeros(column), jnp.zeros(rows.shape)
    num_blocks = (num_filled + size - 1) // size
    _, total, out = jax.lax.fori_loop(0, num_blocks, add_block, start)
    return _by_place((out / total).astype(query.dtype), query.shape)


def _rows_by_head(query, num_kv_heads):
    """[b, t, n, h] -> [b, k, t x n / k, h]: what attends to each key-value head."""
    b, t, n, h = query.shape
    return query.reshape(b, t, num_kv_heads, n // num_kv_heads, h).swapaxes(1, 2).reshape(b, num_kv_heads, -1, h)


def _by_place(rows, shape):
    b, t, n, h = shape
    return rows.reshape(b, rows.shape[1], t, -1, h).swapaxes(1, 2).reshape(shape)


def _scores(rows, key, mask):
    """float32 [b, k, t x n / k, s]."""
    scores = jnp.einsum("bkqh,bksh->bkqs", rows, key, preferred_element_type=jnp.float32) * rows.shape[-1] ** -0.5
    by_place = scores.reshape(*scores.shape[:2], mask.shape[1], -1, scores.shape[-1])
    return jnp.where(mask[:, None, :, None], by_place, _MASKED).reshape(scores.shape)


def causal_segment_mask(segment_ids: Int[Array, "b t"]) -> Bool[Array, "b t t"]:
    """Attend to earlier places and oneself, in the same segment; segment 0 is padding and is never attended."""
    length = segment_ids.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return causal[None] & same & (segment_ids > 0)[:, None, :]
