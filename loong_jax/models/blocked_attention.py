"""Attention in plain XLA operations that reads only what the mask can allow, a block of queries at a time."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from loong_jax.models.attention_mask import Mask
from loong_jax.models.dense_attention import MASKED, product, rows_by_head, rows_by_place


def blocked_attention(
    query: Float[Array, "b t n h"], key: Float[Array, "b t k h"], value: Float[Array, "b t k h"], mask: Mask
) -> Float[Array, "b t n h"]:
    """Scaled dot-product attention; a block of queries reads the keys up to its last one, and within the window.

    The gradients make a block's weights again from the logarithm of their sum (arXiv 2205.14135): none are kept.
    """
    # Batch and heads are one axis: XLA on CPU is slower at products with two.
    rows = _merged(rows_by_head(query, key.shape[2]))
    out = _attend(rows, *(_merged(x.swapaxes(1, 2)) for x in (key, value)), mask)
    return rows_by_place(out.reshape(-1, key.shape[2], *out.shape[1:]), query.shape)


@jax.custom_vjp
def _attend(
    rows: Float[Array, "m q h"], key: Float[Array, "m t h"], value: Float[Array, "m t h"], mask: Mask
) -> Float[Array, "m q h"]:
    """m is batch times key-value heads; rows are the places, times the heads that share a key-value head."""
    return _forward(rows, key, value, mask)[0]


def _forward(rows, key, value, mask):
    outs, log_totals = [], []
    for own, seen in _blocks(rows, key, mask):
        scores = _scores(rows, key, mask, own, seen)
        largest = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = weights.sum(axis=-1, keepdims=True)
        out = product("mqs,msh->mqh", weights.astype(value.dtype), value[:, seen]) / total
        outs.append(out.astype(rows.dtype))
        # Of a row that may attend nothing no gradient comes.
        log_totals.append(jnp.where(largest > MASKED, largest + jnp.log(total), 0))
    out = jnp.concatenate(outs, axis=1)
    return out, (rows, key, value, mask, out, jnp.concatenate(log_totals, axis=1))


def _backward(kept, cotangent):
    rows, key, value, mask, out, log_total = kept
    from_total = (cotangent.astype(jnp.float32) * out).sum(axis=-1, keepdims=True)
    to_rows, to_key, to_value = [], jnp.zeros(key.shape), jnp.zeros(value.shape)
    for own, seen in _blocks(rows, key, mask):
        weights = jnp.exp(_scores(rows, key, mask, own, seen) - log_total[:, own])
        from_weights = product("mqh,msh->mqs", cotangent[:, own], value[:, seen])
        from_scores = (weights * (from_weights - from_total[:, own]) * rows.shape[-1] ** -0.5).astype(rows.dtype)
        to_rows.append(product("mqs,msh->mqh", from_scores, key[:, seen]).astype(rows.dtype))
        to_key = to_key.at[:, seen].add(product("mqs,mqh->msh", from_scores, rows[:, own]))
        to_value = to_value.at[:, seen].add(product("mqs,mqh->msh", weights.astype(value.dtype), cotangent[:, own]))
    return jnp.concatenate(to_rows, axis=1), to_key.astype(key.dtype), to_value.astype(value.dtype), None


_attend.defvjp(_forward, _backward)


def _blocks(rows, key, mask: Mask) -> Iterator[tuple[slice, slice]]:
    """The rows of each block, and the keys that it reads."""
    length = key.shape[1]
    share, size = rows.shape[1] // length, _block_size(length)
    for start in range(0, length, size):
        stop = min(start + size, length)
        first = max(0, start - mask.window + 1) if mask.window else 0
        yield slice(start * share, stop * share), slice(first, stop if mask.causal else length)


def _scores(rows, key, mask: Mask, own: slice, seen: slice) -> Float[Array, "m q s"]:
    """Scaled products of a block in float32, the least number where attention is not allowed."""
    share = rows.shape[1] // key.shape[1]
    places = slice(own.start // share, own.stop // share)
    scores = product("mqh,msh->mqs", rows[:, own], key[:, seen]) * rows.shape[-1] ** -0.5
    segments = mask.segment_ids
    of_block = (None, None) if segments is None else (segments[:, places], segments[:, seen])
    allowed = mask.allowed(*(jnp.arange(part.start, part.stop) for part in (places, seen)), *of_block)
    by_place = scores.reshape(len(allowed), -1, allowed.shape[1], share, scores.shape[-1])
    return jnp.where(allowed[:, None, :, None], by_place, MASKED).reshape(scores.shape)


def _block_size(length: int) -> int:
    """About an eighth of the length: smaller blocks skip more of the mask, and take longer to compile."""
    return min(512, max(128, -(-length // 512) * 64))


def _merged(x):
    return x.reshape(-1, *x.shape[2:])
