"""Attention over a sequence that is cut over devices (ring attention, arXiv 2310.01889)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from loong_jax.models.attention_mask import Mask
from loong_jax.models.dense_attention import MASKED, masked_scores, product, rows_by_head, rows_by_place
from loong_jax.sharding import manual_axes

_LARGEST_CHUNK = 512  # keys that are worked on together


class _Block(NamedTuple):
    """What travels: keys and values, and what makes their mask."""

    key: Float[Array, "b k s h"]
    value: Float[Array, "b k s h"]
    places: Int[Array, " s"]
    segment_ids: Int[Array, "b s"] | None


def ring_attention(
    query: Float[Array, "b t n h"], key: Float[Array, "b t k h"], value: Float[Array, "b t k h"], mask: Mask
) -> Float[Array, "b t n h"]:
    """Scaled dot-product attention of one device's places to all; to be called in a ``map_shards`` that cuts "length".

    No device ever holds the keys and values of more than two, nor weights of more than some keys, also for the
    gradients. A query that may attend nothing (padding) gets zero.
    """
    rows = rows_by_head(query, key.shape[2])
    out = _attend(rows, key.swapaxes(1, 2), value.swapaxes(1, 2), mask)
    return rows_by_place(out, query.shape)


@jax.custom_vjp
def _attend(rows, key, value, mask):
    return _forward(rows, key, value, mask)[0]


def _forward(rows, key, value, mask):
    """The softmax in float32 is corrected as larger scores turn up (arXiv 1805.02867)."""
    own = _own_block(key, value, mask)

    def add_chunk(state, chunk):
        before, total, out = state
        scores = _scores(rows, own, chunk, mask)
        largest = jnp.maximum(before, scores.max(axis=-1, keepdims=True))
        weights, kept = _weights(scores, largest), jnp.exp(before - largest)
        new = product("bkqs,bksh->bkqh", weights.astype(value.dtype), chunk.value)
        return largest, kept * total + weights.sum(axis=-1, keepdims=True), kept * out + new

    def add_block(state, block):
        def step(state, chunk):
            return jax.lax.cond(_meets(own, chunk, mask), add_chunk, lambda state, _: state, state, chunk), None

        return jax.lax.scan(step, state, _chunks(block))[0]

    column = (*rows.shape[:3], 1)
    state = jnp.full(column, MASKED), jnp.zeros(column), jnp.zeros(rows.shape)
    largest, total, out = _around_the_ring(add_block, state, own)
    total = jnp.where(total > 0, total, 1)
    out = (out / total).astype(rows.dtype)
    return out, (rows, key, value, mask, out, largest + jnp.log(total))


def _backward(kept, cotangent):
    """Weights are made again from the logarithm of their sum; a block's gradients travel home with it, in float32."""
    rows, key, value, mask, out, log_total = kept
    own = _own_block(key, value, mask)
    from_total = (cotangent.astype(jnp.float32) * out).sum(axis=-1, keepdims=True)

    def add_chunk(to_rows, chunk):
        weights = _weights(_scores(rows, own, chunk, mask), log_total)
        from_weights = product("bkqh,bksh->bkqs", cotangent, chunk.value)
        from_scores = (weights * (from_weights - from_total) * rows.shape[-1] ** -0.5).astype(rows.dtype)
        to_key = product("bkqs,bkqh->bksh", from_scores, rows)
        to_value = product("bkqs,bkqh->bksh", weights.astype(value.dtype), cotangent)
        return to_rows + product("bkqs,bksh->bkqh", from_scores, chunk.key), (to_key, to_value)

    def skip(to_rows, chunk):
        return to_rows, (jnp.zeros(chunk.key.shape), jnp.zeros(chunk.value.shape))

    def add_block(gradients, block):
        def step(to_rows, chunk):
            return jax.lax.cond(_meets(own, chunk, mask), add_chunk, skip, to_rows, chunk)

        to_rows, to_chunks = jax.lax.scan(step, gradients[0], _chunks(block))
        to_block = (jnp.moveaxis(x, 0, 2).reshape(key.shape) for x in to_chunks)
        return to_rows, _passed_on(tuple(x + y for x, y in zip(gradients[1], to_block, strict=True)))

    gradients = jnp.zeros(rows.shape), (jnp.zeros(key.shape), jnp.zeros(value.shape))
    to_rows, (to_key, to_value) = _around_the_ring(add_block, gradients, own)
    return to_rows.astype(rows.dtype), to_key.astype(key.dtype), to_value.astype(value.dtype), None


_attend.defvjp(_forward, _backward)


def _around_the_ring(add_block, state, own: _Block):
    """``add_block(state, block)`` for the blocks of all devices; one arrives while another is worked on."""

    def step(carry, _):
        state, block = carry
        arriving = _passed_on(block)
        return (add_block(state, block), arriving), None

    num_devices = jax.lax.axis_size(manual_axes("length"))
    (state, last), _ = jax.lax.scan(step, (state, own), length=num_devices - 1)
    return add_block(state, last)


def _passed_on(tree):
    """Everyone gives to the next device what it holds."""
    ring = manual_axes("length")
    num_devices = jax.lax.axis_size(ring)
    pairs = [(device, (device + 1) % num_devices) for device in range(num_devices)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, ring, pairs), tree)


def _own_block(key, value, mask) -> _Block:
    length = key.shape[2]
    first = jax.lax.axis_index(manual_axes("length")) * length
    return _Block(key, value, first + jnp.arange(length), mask.segment_ids)


def _chunks(block: _Block) -> _Block:
    """As few equal parts of a block as are short enough, stacked on a new first axis."""
    length = len(block.places)
    count = next(count for count in range(-(-length // _LARGEST_CHUNK), length + 1) if length % count == 0)
    axes = _Block(2, 2, 0, None if block.segment_ids is None else 1)
    return jax.tree.map(lambda x, axis: jnp.stack(jnp.split(x, count, axis)), block, axes)


def _meets(own: _Block, chunk: _Block, mask: Mask):
    """Whether any of our queries may see any of these keys; segments aside."""
    seen = jnp.array(True)
    if mask.causal:
        seen &= chunk.places[0] <= own.places[-1]
    if mask.window:
        seen &= chunk.places[-1] > own.places[0] - mask.window
    return seen


def _scores(rows, own: _Block, chunk: _Block, mask: Mask):
    allowed = mask.allowed(own.places, chunk.places, own.segment_ids, chunk.segment_ids)
    return masked_scores(rows, chunk.key, allowed)


def _weights(scores, largest):
    """Where a row has seen nothing, its largest score is the masked one, and no weight may come of it."""
    return jnp.where(scores > MASKED, jnp.exp(scores - largest), 0)
