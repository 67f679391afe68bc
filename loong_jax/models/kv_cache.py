"""Keys and values of the tokens so far, for decoding one token at a time."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from loong_jax import sharding
from loong_jax.config import TransformerConfig

_AXES = ("layers", "batch", "kv_heads", None, None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of every slot; ``valid`` says which slots hold a real token."""

    keys: Float[Array, "layers rows kv_heads slots head_dim"]
    values: Float[Array, "layers rows kv_heads slots head_dim"]
    valid: Bool[Array, "rows slots"]

    @staticmethod
    def zeros(config: TransformerConfig, rows: int, slots: int, dtype: jnp.dtype) -> "KVCache":
        """An empty cache."""
        shape = (config.num_layers, rows, config.num_kv_heads, slots, config.head_dim)
        return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((rows, slots), bool))

    @staticmethod
    def shardings(mesh: Mesh, config: TransformerConfig, rows: int, slots: int) -> "KVCache":
        """Where each part of such a cache lies: rows over data and fsdp, heads over tensor."""
        abstract = jax.eval_shape(lambda: KVCache.zeros(config, rows, slots, jnp.float32))
        return sharding.tree_shardings(mesh, abstract, KVCache(_AXES, _AXES, ("batch", None)))
