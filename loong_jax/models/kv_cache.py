"""Keys and values of the tokens so far, for decoding one token at a time."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from loong_jax import sharding
from loong_jax.config import TransformerConfig
from loong_jax.models.quantization import dequantized, quantized

_AXES = ("batch", "kv_heads", None, None)
_LEAST_BLOCK, _MOST_BLOCKS = 64, 16


def block_slots(slots: int) -> int:
    """Slots that are read at once: a long cache is read in larger blocks, for each has its costs."""
    return min(max(_LEAST_BLOCK, -(-slots // _MOST_BLOCKS)), slots)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CachePiece:
    """Keys and values of adjacent slots.

    In int8 each key and value has a scale of its own (``quantization.quantized``), else there are none.
    """

    keys: Float[Array, "rows kv_heads slots head_dim"] | Int[Array, "rows kv_heads slots head_dim"]
    values: Float[Array, "rows kv_heads slots head_dim"] | Int[Array, "rows kv_heads slots head_dim"]
    key_scales: Float[Array, "rows kv_heads slots 1"] | None = None
    value_scales: Float[Array, "rows kv_heads slots 1"] | None = None

    @property
    def num_slots(self) -> int:
        """How many there are."""
        return self.keys.shape[2]

    def write(
        self, slot: Int[Array, ""] | int, key: Float[Array, "b k t h"], value: Float[Array, "b k t h"]
    ) -> "CachePiece":
        """The piece with keys and values in its slots from ``slot`` on; those that fall outside of it are left out."""
        keys, key_scales = _put(self.keys, self.key_scales, key, slot)
        values, value_scales = _put(self.values, self.value_scales, value, slot)
        return CachePiece(keys, values, key_scales, value_scales)

    def read(self, start: Int[Array, ""] | int, size: int, dtype: jnp.dtype) -> tuple[Array, Array]:
        """Keys and values [rows, kv_heads, size, head_dim] of ``size`` slots; of all, where ``size`` is so large."""

        def block(store):
            return store if size == store.shape[2] else jax.lax.dynamic_slice_in_dim(store, start, size, axis=2)

        def part(store, scales):
            return block(store).astype(dtype) if scales is None else dequantized(block(store), block(scales), dtype)

        return part(self.keys, self.key_scales), part(self.values, self.value_scales)


def _put(store, scales, new, slot):
    if scales is None:
        return _overwritten(store, new.astype(store.dtype), slot), None
    return tuple(_overwritten(old, part, slot) for old, part in zip((store, scales), quantized(new, -1), strict=True))


def _overwritten(store, new, slot):
    """``store`` with ``new`` in its slots from ``slot`` on, as far as there are such."""
    size, t = store.shape[2], new.shape[2]
    span = min(size, t)
    start = jnp.clip(slot, 0, size - span)  # what is looked at: of slots that are not written the old numbers
    skipped = start - slot  # of the new ones
    around = jnp.pad(new, ((0, 0), (0, 0), (span, span), (0, 0)))
    moved = jax.lax.dynamic_slice_in_dim(around, jnp.clip(skipped + span, 0, t + span), span, axis=2)
    is_new = (skipped + jnp.arange(span) >= 0) & (skipped + jnp.arange(span) < t)
    old = jax.lax.dynamic_slice_in_dim(store, start, span, axis=2)
    return jax.lax.dynamic_update_slice_in_dim(store, jnp.where(is_new[:, None], moved, old), start, axis=2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer, in pieces that follow each other."""

    pieces: list[CachePiece]

    @property
    def starts(self) -> list[int]:
        """The first slot of each piece."""
        return [0, *itertools.accumulate(piece.num_slots for piece in self.pieces[:-1])]

    def write(
        self, slot: Int[Array, ""] | int, key: Float[Array, "b t k h"], value: Float[Array, "b t k h"]
    ) -> "LayerCache":
        """The cache with keys and values in the slots from ``slot`` on."""
        key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
        parts = zip(self.pieces, self.starts, strict=True)
        return LayerCache([piece.write(slot - start, key, value) for piece, start in parts])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of every slot; ``valid`` says which slots hold a real token.

    Layers have arrays of their own, for a layer that is cut out of a stack is copied before it is multiplied.
    """

    layers: list[LayerCache]
    valid: Bool[Array, "rows slots"]

    @staticmethod
    def zeros(config: TransformerConfig, rows: int, slots: int, dtype: jnp.dtype, is_cut: bool = False) -> "KVCache":
        """An empty cache, where ``is_cut`` in pieces of the blocks in which it is read.

        A CPU copies a block that is cut out of an array before it is multiplied, which takes longer than the product.
        """
        size = block_slots(slots) if is_cut else slots
        sizes = [min(size, slots - start) for start in range(0, slots, size)]

        def piece(size: int) -> CachePiece:  # of arrays of its own each, for they are donated
            shape = (rows, config.num_kv_heads, size, config.head_dim)
            scales = [jnp.ones((*shape[:-1], 1)) if dtype == jnp.int8 else None for _ in range(2)]
            return CachePiece(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), *scales)

        layers = [LayerCache([piece(size) for size in sizes]) for _ in range(config.num_layers)]
        return KVCache(layers, jnp.zeros((rows, slots), bool))

    def shardings(self, mesh: Mesh) -> "KVCache":
        """Where each part of such a cache lies: rows over data and fsdp, heads over tensor."""
        axes = jax.tree.map(lambda x: _AXES if x.ndim == len(_AXES) else ("batch", None), self)
        return sharding.tree_shardings(mesh, self, axes)
