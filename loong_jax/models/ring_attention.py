"""Attention over a sequence that is cut over devices (ring attention, arXiv 2310.01889)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from loong_jax.models.attention_mask import Mask
from loong_jax.models.dense_attention import MASKED, masked_scores, rows_by_head, rows_by_place
from loong_jax.sharding import manual_axes


def ring_attention(
    query: Float[Array, "b t n h"], key: Float[Array, "b t k h"], value: Float[Array, "b t k h"], mask: Mask
) -> Float[Array, "b t n h"]:
    """Scaled dot-product attention of one device's places to all; to be called in a ``map_shards`` that cuts "length".

    Keys and values travel around the ring with their segment ids and places, which make the mask; the softmax is
    corrected as larger scores turn up, in float32. A query that may attend nothing (padding) gets zero.
    """
    ring = manual_axes("length")
    size, own = jax.lax.axis_size(ring), jax.lax.axis_index(ring)
    to_next = [(device, (device + 1) % size) for device in range(size)]
    length, rows = query.shape[1], rows_by_head(query, key.shape[2])
    places = own * length + jnp.arange(length)

    @jax.checkpoint
    def add_block(state, block):
        def attended():
            key, value, keys, segments = block
            allowed = mask.allowed(places, keys, mask.segment_ids, segments)
            return _corrected(state, masked_scores(rows, key, allowed), value)

        keys, seen = block[2], True
        if mask.causal:
            seen &= keys[0] <= places[-1]
        if mask.window:
            seen &= keys[-1] > places[0] - mask.window
        return jax.lax.cond(seen, attended, lambda: state)

    def step(carry, _):
        state, block = carry
        arriving = jax.tree.map(lambda x: jax.lax.ppermute(x, ring, to_next), block)  # while this one is worked on
        return (add_block(state, block), arriving), None

    column = (*rows.shape[:3], 1)
    state = jnp.full(column, MASKED), jnp.zeros(column), jnp.zeros(rows.shape)
    block = key.swapaxes(1, 2), value.swapaxes(1, 2), places, mask.segment_ids
    (state, block), _ = jax.lax.scan(step, (state, block), length=size - 1)
    _, total, out = add_block(state, block)
    return rows_by_place((out / jnp.where(total > 0, total, 1)).astype(query.dtype), query.shape)


def _corrected(state, scores, value):
    """Add a block of keys to the largest score, the sum of weights and that of weighted values (arXiv 1805.02867)."""
    before, total, out = state
    largest = jnp.maximum(before, jax.lax.stop_gradient(scores).max(axis=-1, keepdims=True))
    # A row that saw nothing yet has MASKED as its largest score, from which masked ones differ by nothing.
    weights = jnp.where(scores > MASKED, jnp.exp(scores - largest), 0)
    kept = jnp.exp(before - largest)
    new = jnp.einsum("bkqs,bksh->bkqh", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return largest, kept * total + weights.sum(axis=-1, keepdims=True), kept * out + new
