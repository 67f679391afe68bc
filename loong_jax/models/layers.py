"""The parts of a LLaMA block that are not attention: normalization, rotary positions, the gated MLP."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rms_norm(x: Float[Array, "b t d"], scale: Float[Array, " d"], eps: float) -> Float[Array, "b t d"]:
    """Root-mean-square normalization (arXiv 1910.07467), in float32; the result has the dtype of ``x``."""
    wide = x.astype(jnp.float32)
    normal = wide * jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + eps)
    return (normal * scale[None, None]).astype(x.dtype)


def rope(x: Float[Array, "b t n h"], positions: Int[Array, "b t"], theta: float) -> Float[Array, "b t n h"]:
    """Rotary position embedding (arXiv 2104.09864), halves rotated against each other as Hugging Face does; float32."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies.reshape(1, 1, 1, half)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def swiglu(
    x: Float[Array, "b t d"], gate: Float[Array, "d f"], up: Float[Array, "d f"], down: Float[Array, "f d"]
) -> Float[Array, "b t d"]:
    """Gated MLP, down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""
    return (jax.nn.silu(x @ gate) * (x @ up)) @ down
