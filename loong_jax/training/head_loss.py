"""Head and cross-entropy in one, some places at a time: the scores of all places are never in memory together.

The gradient is worked out beside the loss, so that scores are computed once and not again for the backward pass.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from loong_jax import sharding

_ROWS = 1024  # places of a device that are scored together


class Scores(NamedTuple):
    """What is known of every place once its scores are forgotten."""

    entropy: Float[Array, "b t"]  # cross-entropy of the target, nats
    is_right: Bool[Array, "b t"]  # whether the target has the highest score


def head_loss(
    hidden: Float[Array, "b t d"],
    head: Float[Array, "d v"],
    targets: Int[Array, "b t"],
    weights: Float[Array, "b t"],
    columns: tuple[int, int],
    z_weight: float = 0.0,
) -> tuple[Float[Array, ""], Scores]:
    """Sum of weights x (cross-entropy + z_weight x log(Z)^2), Z the sum of the exponentiated scores (PaLM, section 5).

    Gradients flow to ``hidden`` and ``head``, through the sum alone.

    Args:
        hidden: of every place, in the dtype to compute in.
        head: float32.
        targets: column of the right id, inside of ``columns``.
        weights: of each place; 0 takes it out.
        columns: first and last + 1 of the head's columns that count.
        z_weight: keeps Z near 1.
    """
    return _head_loss((*columns, z_weight), hidden, head, targets, weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _head_loss(options, hidden, head, targets, weights):
    total, scores, _ = _on_mesh(options, False, hidden, head, targets, weights)
    return total, scores


def _forward(options, hidden, head, targets, weights):
    total, scores, gradients = _on_mesh(options, True, hidden, head, targets, weights)
    return (total, scores), gradients


def _backward(options, gradients, cotangents):
    slope, _ = cotangents
    of_hidden, of_head = gradients
    return (of_hidden * slope.astype(of_hidden.dtype), of_head * slope, None, None)


_head_loss.defvjp(_forward, _backward)


def _on_mesh(options, has_gradient, hidden, head, targets, weights):
    """Each device scores its own places with its own columns; the head is gathered once, its gradient summed once."""
    place, of_hidden = ("batch", "length"), ("batch", "length", None)
    gradients = (of_hidden, ("embed", "vocab")) if has_gradient else None
    score = sharding.map_shards(
        functools.partial(_score, options, has_gradient),
        (of_hidden, (None, "vocab"), place, place),
        ((), Scores(place, place), gradients),
    )
    return score(hidden, head.astype(hidden.dtype), targets, weights)


def _score(options, has_gradient, hidden, head, targets, weights):
    """One device's part."""
    first, stop, z_weight = options
    # Mesh axes, none outside a mesh: what places, columns, and rows of the head are cut over.
    row_axes, vocab_axes, embed_axes = (
        sharding.manual_axes(*axes) for axes in (("batch", "length"), ("vocab",), ("embed",))
    )
    shape = hidden.shape
    offset = jax.lax.axis_index(vocab_axes) * head.shape[1] if vocab_axes else 0
    column = offset + jnp.arange(head.shape[1])
    is_column = ((column >= first) & (column < stop))[None]

    def score(of_head, part):
        rows, target, weight = part
        every = jnp.dot(rows, head, preferred_element_type=jnp.float32)
        logits = jnp.where(is_column, every, -jnp.inf)
        top = jax.lax.pmax(logits.max(axis=-1), vocab_axes)
        powers = jnp.exp(logits - top[:, None])
        norm = jax.lax.psum(powers.sum(axis=-1), vocab_axes)
        log_z = top + jnp.log(norm)
        is_here = (target >= offset) & (target < offset + head.shape[1])
        own = jnp.clip(target - offset, 0, head.shape[1] - 1)
        chosen = jnp.take_along_axis(every, own[:, None], axis=1)[:, 0]
        chosen = jax.lax.psum(jnp.where(is_here, chosen, 0), vocab_axes)
        entropy = log_z - chosen
        loss = (weight * (entropy + z_weight * jnp.square(log_z))).sum()
        if not has_gradient:
            return of_head, (loss, entropy, chosen >= top, ())
        slope = weight * (1 + 2 * z_weight * log_z) / norm
        of_target = jnp.where(is_here, weight, 0)[:, None] * (jnp.arange(head.shape[1])[None] == own[:, None])
        of_logits = (slope[:, None] * powers - of_target).astype(rows.dtype)
        of_rows = jax.lax.psum(jnp.dot(of_logits, head.T, preferred_element_type=jnp.float32), vocab_axes)
        of_head += jnp.dot(rows.T, of_logits, preferred_element_type=jnp.float32)
        return of_head, (loss, entropy, chosen >= top, of_rows.astype(rows.dtype))

    start = jnp.zeros(head.shape if has_gradient else (), jnp.float32)
    parts, count = _parts((hidden.reshape(-1, shape[-1]), targets.reshape(-1), weights.reshape(-1)))
    of_head, (losses, *places) = jax.lax.scan(score, start, parts)
    places = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], places)
    entropy, is_right = (x.reshape(shape[:2]) for x in places[:2])
    total, scores = jax.lax.psum(losses.sum(), row_axes), Scores(entropy, is_right)
    if not has_gradient:
        return total, scores, None
    if embed_axes:
        of_head = jax.lax.psum_scatter(of_head, embed_axes, scatter_dimension=0, tiled=True)
    of_head = jax.lax.psum(of_head, tuple(axis for axis in row_axes if axis not in embed_axes))
    # The layers' gradients need the first: without the barrier the other's sum over devices, and so all of it on each
    # device, would wait for the end of the step.
    of_hidden, of_head = jax.lax.optimization_barrier((places[2].reshape(shape), of_head))
    return total, scores, (of_hidden, of_head)


def _parts(arrays):
    """Rows as [parts, rows, ...], filled up with zeros, and how many there were."""
    count = len(arrays[0])
    num_parts = -(-count // _ROWS)
    rows = -(-count // num_parts)
    filled = (jnp.pad(x, [(0, num_parts * rows - count)] + [(0, 0)] * (x.ndim - 1)) for x in arrays)
    return tuple(x.reshape(num_parts, rows, *x.shape[1:]) for x in filled), count
