"""The parts of a LLaMA block that are not attention: normalization, rotary positions, the gated MLP."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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


def swiglu(
    x: Float[Array, "b t d"], gate: Float[Array, "d f"], up: Float[Array, "d f"], down: Float[Array, "f d"]
) -> Float[Array, "b t d"]:
    """Gated MLP, down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""
    return project(jax.nn.silu(project(x, gate)) * project(x, up), down)


def swiglu_in_parts(
    x: Float[Array, "b t d"],
    gate: Float[Array, "d f"],
    up: Float[Array, "d f"],
    down: Float[Array, "f d"],
    num_parts: int,
    shards: int = 1,
    unroll: bool = False,
) -> Float[Array, "b t d"]:
    """The same, one part of the width after another, each computed again for its gradients.

    Inside of a layer that is rematerialized this is no more work: what the layer would compute again is dropped, for
    nothing needs it. Each part has its share of each of the ``shards`` that the width is cut into;
    ``unroll`` writes the loop out.
    """

    def cut(weight, axis):
        before, after = weight.shape[:axis], weight.shape[axis + 1 :]
        split = jnp.moveaxis(weight.reshape(*before, shards, num_parts, -1, *after), axis + 1, 0)
        return split.reshape(num_parts, *before, -1, *after)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def add(total, weights):
        return total + swiglu(x, *weights), None

    weights = (cut(gate, 1), cut(up, 1), cut(down, 0))
    return jax.lax.scan(add, jnp.zeros_like(x), weights, unroll=unroll)[0]


def project(x: Float[Array, "b t d"], weight: Float[Array, "d f"]) -> Float[Array, "b t f"]:
    """``x @ weight``."""
    return jax.lax.platform_dependent(x, weight, cpu=_project_rows, default=jnp.matmul)


def _project_rows(x, weight):
    """The same with batch and time merged: XLA on CPU is half as fast at the gradients of the other form.

    Elsewhere it would merge axes that are split over different devices, and so gather.
    """
    return (x.reshape(-1, x.shape[-1]) @ weight).reshape(*x.shape[:-1], -1)
