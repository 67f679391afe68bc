"""Attention as it is written down: every query against every key. The reference of all other implementations."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MASKED = jnp.finfo(jnp.float32).min


def dense_attention(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b s k h"],
    value: Float[Array, "b s k h"],
    allowed: Bool[Array, "b t s"],
) -> Float[Array, "b t n h"]:
    """Scaled dot-product attention; n query heads share k key-value heads (n a multiple of k); softmax in float32.

    A query that may attend nothing (padding) gets the mean of all values.
    """
    rows, key, value = rows_by_head(query, key.shape[2]), key.swapaxes(1, 2), value.swapaxes(1, 2)
    weights = jax.nn.softmax(masked_scores(rows, key, allowed), axis=-1).astype(value.dtype)
    return rows_by_place(jnp.einsum("bkqs,bksh->bkqh", weights, value), query.shape)


def rows_by_head(query: Float[Array, "b t n h"], num_kv_heads: int) -> Float[Array, "b k q h"]:
    """What attends to each key-value head: q = t x n / k rows."""
    b, t, n, h = query.shape
    return query.reshape(b, t, num_kv_heads, n // num_kv_heads, h).swapaxes(1, 2).reshape(b, num_kv_heads, -1, h)


def rows_by_place(rows: Float[Array, "b k q h"], shape: tuple[int, int, int, int]) -> Float[Array, "b t n h"]:
    """The inverse of ``rows_by_head``, given the shape of the queries."""
    b, t, n, h = shape
    return rows.reshape(b, rows.shape[1], t, -1, h).swapaxes(1, 2).reshape(shape)


def masked_scores(
    rows: Float[Array, "b k q h"], key: Float[Array, "b k s h"], allowed: Bool[Array, "b t s"]
) -> Float[Array, "b k q s"]:
    """Scaled products of rows and keys in float32, the least number where attention is not allowed."""
    scores = product("bkqh,bksh->bkqs", rows, key) * rows.shape[-1] ** -0.5
    by_place = scores.reshape(*scores.shape[:2], allowed.shape[1], -1, scores.shape[-1])
    return jnp.where(allowed[:, None, :, None], by_place, MASKED).reshape(scores.shape)


def product(form: str, left: Float[Array, "..."], right: Float[Array, "..."]) -> Float[Array, "..."]:
    """An einsum that is summed and given back in float32."""
    return jnp.einsum(form, left, right, preferred_element_type=jnp.float32)
