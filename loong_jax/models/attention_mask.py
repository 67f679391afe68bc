"""Which places of a sequence attend to which, as a description that every implementation of attention reads."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """Self-attention within segments, causal or not, over all places or the nearest.

    Places attend to each other where their segment ids are equal and greater than 0; 0 is padding, None one segment.
    With a ``window`` of n > 0 a place sees itself and the n - 1 before it. What a place that may attend nothing gets
    is finite, and up to the implementation.

    Raises:
        ValueError: a window that is negative, or not causal.
    """

    segment_ids: Int[Array, "b t"] | None = None
    causal: bool = dataclasses.field(default=True, metadata={"static": True})
    window: int = dataclasses.field(default=0, metadata={"static": True})

    def __post_init__(self):
        if self.window < 0:
            raise ValueError(f"A window of {self.window} places is not possible: use 0 for none, or at least 1.")
        if self.window and not self.causal:
            raise ValueError(f"A window of {self.window} places looks back only: set causal=True, or window=0.")

    def allowed(
        self,
        queries: Int[Array, " q"],
        keys: Int[Array, " s"],
        query_segments: Int[Array, "b q"] | None,
        key_segments: Int[Array, "b s"] | None,
    ) -> Bool[Array, "b q s"]:
        """Which of some queries attend to which of some keys, given their places; b is 1 without segments."""
        distance = queries[:, None] - keys[None]
        near = jnp.ones(distance.shape, bool)
        if self.causal:
            near &= distance >= 0
        if self.window:
            near &= distance < self.window
        if query_segments is None:
            return near[None]
        same = query_segments[:, :, None] == key_segments[:, None, :]
        return near[None] & same & (key_segments > 0)[:, None, :]

    def dense(self, length: int) -> Bool[Array, "b t t"]:
        """The whole mask; b is 1 without segments."""
        places = jnp.arange(length)
        return self.allowed(places, places, self.segment_ids, self.segment_ids)
