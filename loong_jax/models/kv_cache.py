"""Keys and values of the tokens so far, for decoding one token at a time."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from loong_jax import sharding
from loong_jax.config import TransformerConfig
from loong_jax.models.quantization import dequantized, quantized

_AXES = ("batch", "kv_heads", None, None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer; in int8 each has a scale of its own (``quantization.quantized``), else none."""

    keys: Float[Array, "rows kv_heads slots head_dim"] | Int[Array, "rows kv_heads slots head_dim"]
    values: Float[Array, "rows kv_heads slots head_dim"] | Int[Array, "rows kv_heads slots head_dim"]
    key_scales: Float[Array, "rows kv_heads slots 1"] | None = None
    value_scales: Float[Array, "rows kv_heads slots 1"] | None = None

    def write(
        self, slot: Int[Array, ""] | int, key: Float[Array, "b t k h"], value: Float[Array, "b t k h"]
    ) -> "LayerCache":
        """The cache with keys and values in the slots from ``slot`` on."""

        def put(store, scales, new):
            new = new.swapaxes(1, 2)
            if scales is None:
                return jax.lax.dynamic_update_slice(store, new.astype(store.dtype), (0, 0, slot, 0)), None
            parts = quantized(new, axis=-1)
            return tuple(
                jax.lax.dynamic_update_slice(old, part, (0, 0, slot, 0))
                for old, part in zip((store, scales), parts, strict=True)
            )

        keys, key_scales = put(self.keys, self.key_scales, key)
        values, value_scales = put(self.values, self.value_scales, value)
        return LayerCache(keys, values, key_scales, value_scales)

    def read(self, start: Int[Array, ""], size: int, dtype: jnp.dtype) -> tuple[Array, Array]:
        """Keys and values [rows, kv_heads, size, head_dim] of ``size`` slots; of all, where ``size`` is so large."""

        def block(store):
            return store if size == store.shape[2] else jax.lax.dynamic_slice_in_dim(store, start, size, axis=2)

        def part(store, scales):
            return block(store).astype(dtype) if scales is None else dequantized(block(store), block(scales), dtype)

        return part(self.keys, self.key_scales), part(self.values, self.value_scales)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of every slot; ``valid`` says which slots hold a real token.

    Layers have arrays of their own, for a layer that is cut out of a stack is copied before it is multiplied.
    """

    layers: list[LayerCache]
    valid: Bool[Array, "rows slots"]

    @staticmethod
    def zeros(config: TransformerConfig, rows: int, slots: int, dtype: jnp.dtype) -> "KVCache":
        """An empty cache."""
        shape = (rows, config.num_kv_heads, slots, config.head_dim)

        def layer():  # of arrays of its own each, for they are donated
            scales = [jnp.ones((*shape[:-1], 1)) if dtype == jnp.int8 else None for _ in range(2)]
            return LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), *scales)

        return KVCache([layer() for _ in range(config.num_layers)], jnp.zeros((rows, slots), bool))

    @staticmethod
    def shardings(mesh: Mesh, config: TransformerConfig, rows: int, slots: int, dtype: jnp.dtype) -> "KVCache":
        """Where each part of such a cache lies: rows over data and fsdp, heads over tensor."""
        abstract = jax.eval_shape(lambda: KVCache.zeros(config, rows, slots, dtype))
        axes = jax.tree.map(lambda x: _AXES if x.ndim == len(_AXES) else ("batch", None), abstract)
        return sharding.tree_shardings(mesh, abstract, axes)
