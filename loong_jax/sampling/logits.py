"""From scores of the next code to a choice. Every knob is a traced scalar: changing one compiles nothing."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from loong_jax.config import SamplingConfig, by_frame


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplingRule:
    """Scalars: temperature > 0; top_k (0 = all); top_p and min_p in [0, 1]; guidance_scale (1 = none)."""

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    min_p: Float[Array, ""]
    guidance_scale: Float[Array, ""]


def rules_of(config: SamplingConfig, is_continuing: bool, num_frames: int) -> list[SamplingRule]:
    """The rule of each of the ``num_frames`` latent frames of a clip, the first of a video or one that continues it."""
    config = config.continuing if is_continuing else config

    def value(name: str, frame: int):
        values, dtype = by_frame(getattr(config, name)), jnp.int32 if name == "top_k" else jnp.float32
        return dtype(values[min(frame, len(values) - 1)])

    names = [field.name for field in dataclasses.fields(SamplingRule)]
    return [SamplingRule(**{name: value(name, frame) for name in names}) for frame in range(num_frames)]


def guide(
    conditional: Float[Array, "b v"], unconditional: Float[Array, "b v"], scale: Float[Array, ""]
) -> Float[Array, "b v"]:
    """Classifier-free guidance on scores: unconditional + scale x (conditional - unconditional)."""
    return unconditional + scale * (conditional - unconditional)


def restrict(logits: Float[Array, "b v"], rule: SamplingRule) -> Float[Array, "b v"]:
    """Apply temperature, then set the scores outside top-k, top-p and min-p to -inf.

    top-k keeps the k largest (and ties of the k-th); top-p, of those, the fewest whose probabilities reach p; min-p
    those with at least min_p of the largest probability. The largest is always kept.
    """
    logits = logits / rule.temperature
    ordered = jnp.sort(logits, axis=-1, descending=True)
    rank = jnp.arange(logits.shape[-1])[None]
    k = jnp.where(rule.top_k > 0, rule.top_k, logits.shape[-1])
    kept = jnp.where(rank < k, ordered, -jnp.inf)
    probabilities = jax.nn.softmax(kept, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # A rounded sum can pass 1 before the last code, so p = 1 is said apart.
    in_nucleus = (before < rule.top_p) | (rule.top_p >= 1)
    is_kept = (rank < k) & in_nucleus & (probabilities >= rule.min_p * probabilities[:, :1])
    is_kept = is_kept.at[:, 0].set(True)
    threshold = jnp.where(is_kept, ordered, jnp.inf).min(axis=-1, keepdims=True)
    return jnp.where(logits >= threshold, logits, -jnp.inf)


def choose(keys: Array, logits: Float[Array, "b v"], rule: SamplingRule) -> Int[Array, " b"]:
    """Draw a code for every row with that row's own key."""
    return jax.vmap(jax.random.categorical)(keys, restrict(logits, rule)).astype(jnp.int32)
