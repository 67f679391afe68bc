"""Attention of decoding: a few queries over the filled slots of a cache."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from loong_jax.models.dense_attention import MASKED, masked_scores, rows_by_head, rows_by_place
from loong_jax.models.kv_cache import LayerCache

_LEAST_BLOCK, _MOST_BLOCKS = 64, 16


def cached_attention(
    query: Float[Array, "b t n h"],
    cache: LayerCache,
    allowed: Bool[Array, "b t s"],
    num_filled: Int[Array, ""] | int,
) -> Float[Array, "b t n h"]:
    """Scaled dot-product attention over one layer of a cache, of which only the first ``num_filled`` slots are read.

    Some slots at a time, with a softmax that is corrected as larger scores turn up (arXiv 1805.02867): early tokens
    read little. A long cache is read in larger blocks, for each has its costs.
    """
    slots, heads = cache.keys.shape[2], cache.keys.shape[1]
    size = min(max(_LEAST_BLOCK, -(-slots // _MOST_BLOCKS)), slots)
    rows = rows_by_head(query, heads)

    def add_block(index, carry):
        largest, total, out = carry
        start = jnp.minimum(index * size, slots - size)  # the last block may overlap the one before
        keys, values = cache.read(start, size, query.dtype)
        is_new = start + jnp.arange(size) >= index * size
        seen = jax.lax.dynamic_slice_in_dim(allowed, start, size, axis=2) & is_new[None, None]
        scores = masked_scores(rows, keys, seen)
        largest, before = jnp.maximum(largest, scores.max(axis=-1, keepdims=True)), largest
        weights, kept = jnp.exp(scores - largest), jnp.exp(before - largest)
        new = jnp.einsum("bkqs,bksh->bkqh", weights.astype(query.dtype), values, preferred_element_type=jnp.float32)
        return largest, kept * total + weights.sum(axis=-1, keepdims=True), kept * out + new

    column = (*rows.shape[:3], 1)
    start = jnp.full(column, MASKED), jnp.zeros(column), jnp.zeros(rows.shape)
    num_blocks = (num_filled + size - 1) // size
    _, total, out = jax.lax.fori_loop(0, num_blocks, add_block, start)
    return rows_by_place((out / total).astype(query.dtype), query.shape)
