"""The transformer as a decoding loop reads it: each layer's matrices joined, in the dtype they are multiplied in.

A step of decoding is bound by reading the weights. So they are made once for the loop: queries, keys and values are one
matrix, gate and up another, in the compute dtype or int8, and each layer has arrays of its own, for a layer that is cut
out of a stack is copied before it is multiplied.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from loong_jax.config import TransformerConfig
from loong_jax.models.cached_attention import cached_attention
from loong_jax.models.kv_cache import KVCache
from loong_jax.models.layers import rms_norm, rotate, rotation
from loong_jax.models.quantization import quantized
from loong_jax.models.transformer import compute_dtype
from loong_jax.sharding import LogicalAxes, constrain


@dataclasses.dataclass(frozen=True)
class Storage:
    """How matrices are kept: in int8 or the compute dtype, by input or by output.

    By output, a CPU reads them faster for one row and slower for several.
    """

    is_int8: bool
    is_transposed: bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Matrix:
    """A weight [in, out], or [out, in] where ``is_transposed``; in int8 with a scale for each output."""

    values: Float[Array, "d f"] | Int[Array, "d f"]
    scales: Float[Array, " f"] | None
    is_transposed: bool = dataclasses.field(metadata={"static": True})

    def __call__(self, x: Float[Array, "... d"], dtype: jnp.dtype) -> Float[Array, "... f"]:
        """``x @ weight`` in ``dtype``; scales are applied to the product, so that the weight is never made whole."""
        over = ((x.ndim - 1,), (int(self.is_transposed),))
        out = jax.lax.dot_general(x, self.values.astype(x.dtype), (over, ((), ())), preferred_element_type=jnp.float32)
        out = out if self.scales is None else out * jnp.expand_dims(self.scales, range(x.ndim - 1))
        return out.astype(dtype)


def decoding_params(params: dict, config: TransformerConfig, start: int, stop: int, storage: Storage) -> dict:
    """What ``extend`` and ``logits`` read, of a transformer's parameters; the head is cut to the ids [start, stop)."""
    dtype, blocks = compute_dtype(config), params["blocks"]
    d, kv_heads = config.model_dim, config.num_kv_heads

    def matrix(weight: Float[Array, "d f"]) -> Matrix:
        values, scales = quantized(weight, axis=0) if storage.is_int8 else (weight.astype(dtype), None)
        scales = None if scales is None else scales[0]
        return Matrix(values.T if storage.is_transposed else values, scales, storage.is_transposed)

    def layer(index: int) -> dict:
        own = {name: value[index] for name, value in blocks.items()}
        # By key-value head, its queries, key and value together, so that meshes cut between heads.
        heads = [own[name].reshape(d, kv_heads, -1, config.head_dim) for name in ("query", "key", "value")]
        return {name: value for name, value in own.items() if name.endswith("norm")} | {
            "heads": matrix(jnp.concatenate(heads, axis=2).reshape(d, -1)),
            "output": matrix(own["output"].reshape(-1, d)),
            "gate_up": matrix(jnp.stack([own["gate"], own["up"]], axis=-1).reshape(d, -1)),
            "down": matrix(own["down"]),
        }

    return {
        "embedding": params["embedding"].astype(dtype),
        "layers": [layer(index) for index in range(config.num_layers)],
        "final_norm": params["final_norm"],
        "head": matrix(params["head"][:, start:stop]),
    }


def logical_axes(params: dict) -> dict:
    """Logical axis names of every array of ``decoding_params``, in its structure.

    Matrices are cut over heads, widths and ids alone. Those that training also cuts along the model's own width, with
    the rows of the batch, would be gathered again for each id.
    """

    def of_matrix(matrix: Matrix, axes: LogicalAxes) -> Matrix:
        scales = None if matrix.scales is None else axes[1:]
        return Matrix(axes[::-1] if matrix.is_transposed else axes, scales, matrix.is_transposed)

    places = {
        "heads": (None, "kv_heads"),
        "output": ("heads", None),
        "gate_up": (None, "mlp"),
        "down": ("mlp", None),
    }
    layers = [
        {name: of_matrix(part, places[name]) if name in places else (None,) for name, part in layer.items()}
        for layer in params["layers"]
    ]
    head = of_matrix(params["head"], (None, "vocab"))
    return {"embedding": ("vocab", None), "layers": layers, "final_norm": (None,), "head": head}


def extend(
    params: Any,
    config: TransformerConfig,
    tokens: Int[Array, "r t"],
    positions: Int[Array, "r t *axes"],
    valid: Bool[Array, "r t"],
    cache: KVCache,
    slot: Int[Array, ""] | int,
) -> tuple[Float[Array, "r t d"], KVCache]:
    """Write tokens into the slots from ``slot`` on and return their hidden states and the new cache.

    A token sees the valid slots up to its own. With many tokens this is prefill, with one it is a decoding step.
    """
    (rows, t), dtype, eps = tokens.shape, compute_dtype(config), config.norm_eps
    layers, valid = list(cache.layers), jax.lax.dynamic_update_slice(cache.valid, valid, (0, slot))
    slots = jnp.arange(valid.shape[1])
    mask = valid[:, None, :] & (slots[None, None, :] <= slot + jnp.arange(t)[None, :, None])
    turn = rotation(positions, config.head_dim, config.rope_theta)
    group = config.num_heads // config.num_kv_heads
    x = constrain(params["embedding"][tokens], "batch", "length", None)
    for index, layer in enumerate(params["layers"]):
        heads = layer["heads"](rms_norm(x, layer["attention_norm"], eps), dtype)
        heads = heads.reshape(rows, t, config.num_kv_heads, group + 2, config.head_dim)
        query = heads[..., :group, :].reshape(rows, t, -1, config.head_dim)
        key, value = heads[..., group, :], heads[..., group + 1, :]
        if config.qk_norm:
            query, key = rms_norm(query, layer["query_norm"], eps), rms_norm(key, layer["key_norm"], eps)
        query, key = rotate(query, turn), rotate(key, turn)
        layers[index] = layers[index].write(slot, key, value)
        attended = cached_attention(query, layers[index], mask, slot + t)
        x = constrain(x + layer["output"](attended.reshape(rows, t, -1), dtype), "batch", "length", None)
        gate_up = layer["gate_up"](rms_norm(x, layer["mlp_norm"], eps), dtype).reshape(rows, t, -1, 2)
        x = x + layer["down"](jax.nn.silu(gate_up[..., 0]) * gate_up[..., 1], dtype)
        x = constrain(x, "batch", "length", None)
    return rms_norm(x, params["final_norm"], eps), KVCache(layers, valid)


def logits(params: Any, hidden: Float[Array, "... d"]) -> Float[Array, "... v"]:
    """Scores of the ids that the head was cut to, float32."""
    return params["head"](hidden, jnp.float32)
