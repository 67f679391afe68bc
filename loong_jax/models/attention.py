"""Attention behind one function: a description of the mask, and the implementation that suits the machine."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from loong_jax.models.attention_mask import Mask
from loong_jax.models.blocked_attention import blocked_attention
from loong_jax.models.dense_attention import dense_attention
from loong_jax.models.ring_attention import ring_attention
from loong_jax.models.splash_attention import splash_attention
from loong_jax.sharding import current_parts, current_platform, map_shards


def attention(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b t k h"],
    value: Float[Array, "b t k h"],
    mask: Mask,
    implementation: str = "auto",
) -> Float[Array, "b t n h"]:
    """Scaled dot-product self-attention; n query heads share k key-value heads (n a multiple of k); softmax in float32.

    Implementations: "reference" (dense), "xla" (blocks of queries), "splash" (TPU kernels), "cudnn" (GPU kernels),
    "ring" (sequences cut over devices) and "auto", which chooses among them.

    Raises:
        ValueError: the implementation cannot do this shape or mask, or does not fit the current mesh.
    """
    if key.shape != value.shape or query.shape[:2] != key.shape[:2] or query.shape[2] % key.shape[2]:
        raise ValueError(
            "Self-attention takes queries [b, t, n, h], keys and values [b, t, k, h], n a multiple of k; given are "
            f"{query.shape}, {key.shape} and {value.shape}."
        )
    parts = current_parts("length")
    if implementation == "auto":
        implementation = choose(current_platform(), parts, query, mask)
    if parts > 1 and implementation in ("xla", "splash", "cudnn"):
        raise ValueError(
            f"Attention {implementation!r} needs whole sequences, which this mesh cuts into {parts} parts: use "
            "model.attention='ring', or mesh.sequence=1."
        )
    match implementation:
        case "reference":
            return dense_attention(query, key, value, mask.dense(query.shape[1]))
        case "xla":
            return _by_shard(blocked_attention, None)(query, key, value, mask)
        case "splash":
            return _by_shard(splash_attention, None)(query, key, value, mask)
        case "cudnn":
            return cudnn_attention(query, key, value, mask)
        case "ring" if parts > 1:
            return _by_shard(ring_attention, "length")(query, key, value, mask)
        case "ring":
            raise ValueError(
                "Attention 'ring' needs a mesh (jax.set_mesh) that cuts sequences: set mesh.sequence greater than 1, "
                "or model.attention='auto'."
            )
    raise ValueError(f"There is no attention {implementation!r}: use reference, xla, splash, cudnn, ring or auto.")


def choose(platform: str, sequence_parts: int, query: Float[Array, "b t n h"], mask: Mask) -> str:
    """What "auto" is on a platform ("cpu", "gpu" or "tpu") and a mesh that cuts sequences into parts."""
    if sequence_parts > 1:
        return "ring"
    if platform == "tpu" and query.shape[1] >= 128:
        return "splash"
    if platform == "gpu" and mask.segment_ids is None and _fits_cudnn(query):
        return "cudnn"
    return "xla"


def cudnn_attention(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b t k h"],
    value: Float[Array, "b t k h"],
    mask: Mask,
    implementation: str = "cudnn",
) -> Float[Array, "b t n h"]:
    """Scaled dot-product attention by JAX's cuDNN kernels; "xla" in place of "cudnn" does the same on a CPU.

    Raises:
        ValueError: the mask has segments, or the kernels do not take the dtype or the size of a head.
    """
    if mask.segment_ids is not None:
        raise ValueError(
            "Attention 'cudnn' knows no segments: use model.attention='xla', or leave segment_ids out where every row "
            "is one causal sequence with its padding at the end."
        )
    if implementation == "cudnn" and not _fits_cudnn(query):
        raise ValueError(
            f"Attention 'cudnn' takes bfloat16 or float16 and heads of a multiple of 8 up to 128, not {query.dtype} "
            f"and {query.shape[-1]}: use model.attention='xla'."
        )
    window = (mask.window - 1, 0) if mask.window else None
    return jax.nn.dot_product_attention(
        query, key, value, is_causal=mask.causal, local_window_size=window, implementation=implementation
    )


def _fits_cudnn(query):
    return query.dtype in (jnp.bfloat16, jnp.float16) and query.shape[-1] <= 128 and query.shape[-1] % 8 == 0


def _by_shard(function, length: str | None):
    """Every device works on its own rows and heads, and on its own part of the sequence where ``length`` is named."""
    queries, keys = ("batch", length, "heads", None), ("batch", length, "kv_heads", None)
    return map_shards(function, (queries, keys, keys, ("batch", length)), queries)
