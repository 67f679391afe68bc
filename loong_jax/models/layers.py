"""The parts of a LLaMA block that are not attention: normalization, rotary positions, the gated MLP."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from loong_jax.sharding import constrain


def rms_norm(x: Float[Array, "... d"], scale: Float[Array, " d"], eps: float) -> Float[Array, "... d"]:
    """Root-mean-square normalization (arXiv 1910.07467), in float32; the result has the dtype of ``x``."""
    wide = x.astype(jnp.float32)
    normal = wide * jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + eps)
    return (normal * jnp.expand_dims(scale, tuple(range(x.ndim - 1)))).astype(x.dtype)


Rotation = tuple[Float[Array, "b t 1 half"], Float[Array, "b t 1 half"]]


def rotation(positions: Int[Array, "b t"] | Int[Array, "b t axes"], head_dim: int, theta: float) -> Rotation:
    """Cosine and sine of the rotary angles (arXiv 2104.09864), float32.

    Where a place has several coordinates, the pairs of channels take them in turn, so that each has slow and fast ones
    (as interleaved by Qwen2-VL's successors and Lumos-1, arXiv 2507.08801). Made once and used by every layer: computed
    inside of one, they would be computed again for each head.
    """
    half = head_dim // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    positions = jnp.asarray(positions).reshape(*positions.shape[:2], -1)
    own = positions[:, :, jnp.arange(half) % positions.shape[-1]]
    angles = own[:, :, None].astype(jnp.float32) * frequencies.reshape(1, 1, 1, half)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "b t n h"], rotation: Rotation) -> Float[Array, "b t n h"]:
    """Rotary position embedding, halves rotated against each other as Hugging Face does; in float32."""
    cos, sin = rotation
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


@jax.custom_vjp
def swiglu(
    x: Float[Array, "b t d"], gate: Float[Array, "d f"], up: Float[Array, "d f"], down: Float[Array, "f d"]
) -> Float[Array, "b t d"]:
    """Gated MLP, down(silu(gate(x)) * up(x)) (arXiv 2002.05202).

    The matrices' gradients are summed over devices one after the other. Until then every device holds the whole of
    one, and they are the largest arrays of a layer: together they would decide how much memory a step needs.
    """
    return _with_saved(x, gate, up, down)[0]


def _with_saved(x, gate, up, down):
    gated, raised = project(x, gate), project(x, up)
    return project(jax.nn.silu(gated) * raised, down), (x, gate, up, down, gated, raised)


def _gradients(saved, of_out):
    x, gate, up, down, gated, raised = saved
    product, through_product = jax.vjp(lambda gated, raised: jax.nn.silu(gated) * raised, gated, raised)
    of_down = _of_weight(product, down, of_out, ("mlp", "embed"))
    own_down = constrain(down, "mlp", "embed")  # gathered from the devices when its turn comes
    of_down, of_out, own_down = jax.lax.optimization_barrier((of_down, of_out, own_down))
    of_gated, of_raised = through_product(_of_input(product, own_down, of_out))
    of_gate = _of_weight(x, gate, of_gated, ("embed", "mlp"))
    of_gate, of_raised = jax.lax.optimization_barrier((of_gate, of_raised))
    of_up = _of_weight(x, up, of_raised, ("embed", "mlp"))
    return _of_input(x, gate, of_gated) + _of_input(x, up, of_raised), of_gate, of_up, of_down


def _of_weight(x, weight, of_out, axes):
    (gradient,) = jax.vjp(lambda weight: project(x, weight), weight)[1](of_out)
    return constrain(gradient, *axes)


def _of_input(x, weight, of_out):
    (gradient,) = jax.vjp(lambda x: project(x, weight), x)[1](of_out)
    return gradient


swiglu.defvjp(_with_saved, _gradients)


def project(x: Float[Array, "b t d"], weight: Float[Array, "d f"]) -> Float[Array, "b t f"]:
    """``x @ weight``."""
    return jax.lax.platform_dependent(x, weight, cpu=_project_rows, default=jnp.matmul)


def _project_rows(x, weight):
    """The same with batch and time merged: XLA on CPU is half as fast at the gradients of the other form.

    Elsewhere it would merge axes that are split over different devices, and so gather.
    """
    return (x.reshape(-1, x.shape[-1]) @ weight).reshape(*x.shape[:-1], -1)
