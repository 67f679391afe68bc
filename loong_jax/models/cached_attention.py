"""Attention of decoding: a few queries over the filled slots of a cache."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from loong_jax.models.dense_attention import MASKED, masked_scores, product, rows_by_head, rows_by_place
from loong_jax.models.kv_cache import CachePiece, LayerCache, block_slots

# The largest score so far, the sum of weights and the weighted sum of values, both relative to it.
_Sums = tuple[Float[Array, "b k q 1"], Float[Array, "b k q 1"], Float[Array, "b k q h"]]


def cached_attention(
    query: Float[Array, "b t n h"],
    cache: LayerCache,
    allowed: Bool[Array, "b t s"],
    num_filled: Int[Array, ""] | int,
) -> Float[Array, "b t n h"]:
    """Scaled dot-product attention over one layer of a cache, of which only the first ``num_filled`` slots are read.

    Some slots at a time, with a softmax that is corrected as larger scores turn up (arXiv 1805.02867): early tokens
    read little.
    """
    rows = rows_by_head(query, cache.pieces[0].keys.shape[1])
    column = (*rows.shape[:3], 1)
    sums = jnp.full(column, MASKED), jnp.zeros(column), jnp.zeros(rows.shape)
    size = block_slots(allowed.shape[2])
    for piece, start in zip(cache.pieces, cache.starts, strict=True):
        own = allowed[:, :, start : start + piece.num_slots]
        if piece.num_slots > size:
            sums = _add_blocks(sums, rows, piece, own, num_filled - start, size)
        else:
            sums = jax.lax.cond(num_filled > start, _add_piece, lambda sums, *_: sums, sums, rows, piece, own)
    _, total, out = sums
    return rows_by_place((out / total).astype(query.dtype), query.shape)


def _add_piece(sums: _Sums, rows: Float[Array, "b k q h"], piece: CachePiece, allowed: Bool[Array, "b t s"]) -> _Sums:
    keys, values = piece.read(0, piece.num_slots, rows.dtype)
    return _add(sums, rows, keys, values, allowed)


def _add_blocks(
    sums: _Sums,
    rows: Float[Array, "b k q h"],
    piece: CachePiece,
    allowed: Bool[Array, "b t s"],
    num_filled: Int[Array, ""] | int,
    size: int,
) -> _Sums:
    def add_block(index, sums):
        start = jnp.minimum(index * size, piece.num_slots - size)  # the last block may overlap the one before
        keys, values = piece.read(start, size, rows.dtype)
        is_new = start + jnp.arange(size) >= index * size
        seen = jax.lax.dynamic_slice_in_dim(allowed, start, size, axis=2) & is_new[None, None]
        return _add(sums, rows, keys, values, seen)

    num_blocks = (jnp.clip(num_filled, 0, piece.num_slots) + size - 1) // size
    return jax.lax.fori_loop(0, num_blocks, add_block, sums)


def _add(sums: _Sums, rows, keys, values, allowed) -> _Sums:
    largest, total, out = sums
    scores = masked_scores(rows, keys, allowed)
    largest, before = jnp.maximum(largest, scores.max(axis=-1, keepdims=True)), largest
    weights, kept = jnp.exp(scores - largest), jnp.exp(before - largest)
    new = product("bkqs,bksh->bkqh", weights.astype(rows.dtype), values)
    return largest, kept * total + weights.sum(axis=-1, keepdims=True), kept * out + new
