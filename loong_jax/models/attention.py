"""Attention and its masks. True in a mask means: attend."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def attention(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b k s h"],
    value: Float[Array, "b k s h"],
    mask: Bool[Array, "b t s"],
) -> Float[Array, "b t n h"]:
    """Scaled dot-product attention; n query heads share k key-value heads (n a multiple of k); softmax in float32.

    Heads come before places in keys and values, as in the cache: one place after the other in memory is what a step of
    decoding reads fast. A query that may attend nothing (padding) gets the mean of all values.
    """
    b, t, n, h = query.shape
    k = key.shape[1]
    by_head = query.reshape(b, t, k, n // k, h).swapaxes(1, 2).reshape(b, k, -1, h)  # n // k rows for each place
    scores = jnp.einsum("bkqh,bksh->bkqs", by_head, key, preferred_element_type=jnp.float32) * h**-0.5
    scores = jnp.where(mask[:, None, :, None], scores.reshape(b, k, t, n // k, -1), jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype).reshape(b, k, t * n // k, -1)
    out = jnp.einsum("bkqs,bksh->bkqh", weights, value)
    return out.reshape(b, k, t, n // k, h).swapaxes(1, 2).reshape(b, t, n, h)


def causal_segment_mask(segment_ids: Int[Array, "b t"]) -> Bool[Array, "b t t"]:
    """Attend to earlier places and oneself, in the same segment; segment 0 is padding and is never attended."""
    length = segment_ids.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return causal[None] & same & (segment_ids > 0)[:, None, :]
