"""Numbers in eight bits with a scale for each group of them."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_LARGEST = 127


def quantized(x: Float[Array, "..."], axis: int) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    """int8 values and float32 scales, one for all numbers along ``axis`` (kept, of size 1): x = values x scales.

    The largest number of a group is met exactly; a group of zeros has the scale 1.
    """
    wide = x.astype(jnp.float32)
    largest = jnp.abs(wide).max(axis=axis, keepdims=True)
    scales = jnp.where(largest > 0, largest / _LARGEST, 1)
    return jnp.round(wide / scales).clip(-_LARGEST, _LARGEST).astype(jnp.int8), scales


def dequantized(values: Int[Array, "..."], scales: Float[Array, "..."], dtype: jnp.dtype) -> Float[Array, "..."]:
    """The numbers that ``values`` and ``scales`` stand for."""
    return (values.astype(jnp.float32) * scales).astype(dtype)
