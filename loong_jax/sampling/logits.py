"""From scores of the next code to a choice. Every knob is a traced scalar: changing one compiles nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from loong_jax.config import SamplingConfig, by_frame


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplingRule:
    """Scalars: temperature > 0; top_k (0 = all); top_p and min_p in [0, 1]; guidance_scale and penalty (1 = none)."""

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    min_p: Float[Array, ""]
    guidance_scale: Float[Array, ""]
    repetition_penalty: Float[Array, ""]


def rules_of(config: SamplingConfig, is_continuing: bool, num_frames: int) -> list[SamplingRule]:
    """The rule of each of the ``num_frames`` latent frames of a clip, the first of a video or one that continues it."""
    config = config.continuing if is_continuing else config

    def value(name: str, frame: int):
        values, dtype = by_frame(getattr(config, name)), np.int32 if name == "top_k" else np.float32
        return dtype(values[min(frame, len(values) - 1)])

    names = [field.name for field in dataclasses.fields(SamplingRule)]
    return [SamplingRule(**{name: value(name, frame) for name in names}) for frame in range(num_frames)]


def guide(
    conditional: Float[Array, "b v"], unconditional: Float[Array, "b v"], scale: Float[Array, ""]
) -> Float[Array, "b v"]:
    """Classifier-free guidance on scores: unconditional + scale x (conditional - unconditional).

    Where one of the two is -inf, which has no direction, the conditional score is the answer.
    """
    guided = unconditional + scale * (conditional - unconditional)
    return jnp.where(jnp.isfinite(conditional) & jnp.isfinite(unconditional), guided, conditional)


def discourage(logits: Float[Array, "b v"], codes: Int[Array, " b"], penalty: Float[Array, ""]) -> Float[Array, "b v"]:
    """Divide the model's odds of one code of each row by ``penalty``; a negative code is none.

    The repetition guard of video: ``codes`` are those at the same place of the latent frame before. A video that
    freezes repeats just these, and each repetition makes the next one likelier. Text's guard, against every code that
    occurred (arXiv 1909.05858), would punish what is right: a sky is one code at a hundred places. Dividing odds, which
    is subtracting from scores, does the same wherever the scores' zero lies.
    """
    is_repeated = codes[:, None] == jnp.arange(logits.shape[-1])[None]
    return logits - jnp.where(is_repeated, jnp.log(penalty), 0)


def restrict(logits: Float[Array, "b v"], rule: SamplingRule) -> Float[Array, "b v"]:
    """Apply temperature, then set the scores outside top-k, top-p and min-p to -inf.

    top-k keeps the k largest (and ties of the k-th); top-p, of those, the fewest whose probabilities reach p; min-p
    those with at least min_p of the largest probability. The largest is always kept. Nothing is sorted, which on every
    kind of device takes longer than a layer: the least score that is kept is found bit by bit.
    """
    logits = logits / rule.temperature
    order = _in_order(logits)
    everything = jnp.zeros((len(logits), 1), jnp.uint32)
    count, ones = rule.top_k.astype(jnp.float32), jnp.ones_like(logits)
    best_k = jax.lax.cond(count > 0, lambda: _threshold(order, ones, count), lambda: everything)
    weights = jnp.where(order >= best_k, jnp.exp(logits - logits.max(axis=-1, keepdims=True)), 0)
    needed = rule.top_p * weights.sum(axis=-1, keepdims=True)
    nucleus = jax.lax.cond(rule.top_p < 1, lambda: _threshold(order, weights, needed), lambda: everything)
    is_kept = (order >= jnp.maximum(best_k, nucleus)) & (weights >= rule.min_p)
    return jnp.where(is_kept, logits, -jnp.inf)


def _in_order(x: Float[Array, "b v"]) -> UInt32[Array, "b v"]:
    """Integers in the order of the numbers: the bits of a float, with those of a negative one turned over."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits >= sign, ~bits, bits | sign)


def _threshold(
    order: UInt32[Array, "b v"], weights: Float[Array, "b v"], needed: Float[Array, "b 1"] | Float[Array, ""]
) -> UInt32[Array, "b 1"]:
    """For each row the largest number from which on the weights add up to what is needed; 0 where they never do."""

    def next_bit(index, found):
        larger = found | (jnp.uint32(1) << (31 - index).astype(jnp.uint32))
        total = jnp.where(order >= larger, weights, 0).sum(axis=-1, keepdims=True)
        return jnp.where(total >= needed, larger, found)

    return jax.lax.fori_loop(0, 32, next_bit, jnp.zeros((len(order), 1), jnp.uint32))


def choose(keys: Array, logits: Float[Array, "b v"], rule: SamplingRule) -> Int[Array, " b"]:
    """Draw a code for every row with that row's own key; one without odds (-inf) is never drawn."""
    return jax.vmap(jax.random.categorical)(keys, restrict(logits, rule)).astype(jnp.int32)
