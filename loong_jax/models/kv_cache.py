"""Keys and values of the tokens so far, for decoding one token at a time."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from loong_jax import sharding
from loong_jax.config import TransformerConfig
from loong_jax.models.quantization import dequantized, quantized

_AXES = ("layers", "batch", "kv_heads", None, None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of every slot; ``valid`` says which slots hold a real token.

    In int8 each key and value has a scale of its own (``quantization.quantized``); else there are none.
    """

    keys: Float[Array, "layers rows kv_heads slots head_dim"] | Int[Array, "layers rows kv_heads slots head_dim"]
    values: Float[Array, "layers rows kv_heads slots head_dim"] | Int[Array, "layers rows kv_heads slots head_dim"]
    valid: Bool[Array, "rows slots"]
    key_scales: Float[Array, "layers rows kv_heads slots 1"] | None = None
    value_scales: Float[Array, "layers rows kv_heads slots 1"] | None = None

    @staticmethod
    def zeros(config: TransformerConfig, rows: int, slots: int, dtype: jnp.dtype) -> "KVCache":
        """An empty cache."""
        shape = (config.num_layers, rows, config.num_kv_heads, slots, config.head_dim)
        # Arrays of their own each, for they are donated.
        scales = [jnp.ones((*shape[:-1], 1)) if dtype == jnp.int8 else None for _ in range(2)]
        return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((rows, slots), bool), *scales)

    @staticmethod
    def shardings(mesh: Mesh, config: TransformerConfig, rows: int, slots: int, dtype: jnp.dtype) -> "KVCache":
        """Where each part of such a cache lies: rows over data and fsdp, heads over tensor."""
        abstract = jax.eval_shape(lambda: KVCache.zeros(config, rows, slots, dtype))
        scales = [None if abstract.key_scales is None else _AXES] * 2
        return sharding.tree_shardings(mesh, abstract, KVCache(_AXES, _AXES, ("batch", None), *scales))

    def write(
        self, layer: int, slot: Int[Array, ""] | int, key: Float[Array, "b t k h"], value: Float[Array, "b t k h"]
    ) -> "KVCache":
        """The cache with a layer's keys and values in the slots from ``slot`` on."""

        def put(store, scales, new):
            new = new.swapaxes(1, 2)[None]
            if scales is None:
                return jax.lax.dynamic_update_slice(store, new.astype(store.dtype), (layer, 0, 0, slot, 0)), None
            parts = quantized(new, axis=-1)
            return tuple(
                jax.lax.dynamic_update_slice(old, part, (layer, 0, 0, slot, 0))
                for old, part in zip((store, scales), parts, strict=True)
            )

        keys, key_scales = put(self.keys, self.key_scales, key)
        values, value_scales = put(self.values, self.value_scales, value)
        return KVCache(keys, values, self.valid, key_scales, value_scales)

    def read(self, layer: int, start: Int[Array, ""], size: int, dtype: jnp.dtype) -> tuple[Array, Array]:
        """Keys and values [rows, kv_heads, size, head_dim] of ``size`` slots of a layer."""

        def block(store):
            shape = (1, *store.shape[1:3], size, store.shape[4])
            return jax.lax.dynamic_slice(store, (layer, 0, 0, start, 0), shape)[0]

        def part(store, scales):
            return block(store).astype(dtype) if scales is None else dequantized(block(store), block(scales), dtype)

        return part(self.keys, self.key_scales), part(self.values, self.value_scales)
