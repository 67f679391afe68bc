"""What a training carries from step to step, and how it is created on a mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from loong_jax import sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Step count (int32), parameters (float32), optimizer state, and ``extra`` (the tokenizer's cluster state)."""

    step: jax.Array
    params: Any
    opt_state: Any
    extra: Any = ()


def create_state(
    init_params: Callable[[jax.Array], Any],
    axes: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    key: jax.Array,
    init_extra: Callable[[jax.Array], Any] = lambda key: (),
) -> tuple[TrainState, TrainState]:
    """Create the state directly in its sharding; no device ever holds more than its part.

    Args:
        init_params: key -> parameters.
        axes: tree of logical axes, one tuple per parameter.

    Returns:
        The state, and the tree of its NamedShardings.
    """

    def init(key):
        params = init_params(key)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), init_extra(key))

    abstract = jax.eval_shape(init, key)
    shardings = state_shardings(abstract, axes, optimizer, mesh)
    return jax.jit(init, out_shardings=shardings)(key), shardings


def state_shardings(abstract: TrainState, axes: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shardings of a state: every moment lies where its parameter lies, everything else is replicated."""
    params = sharding.tree_shardings(mesh, abstract.params, axes)
    whole = sharding.replicated(mesh)
    opt_state = optax.tree_map_params(
        optimizer,
        lambda _, place: place,
        abstract.opt_state,
        params,
        transform_non_params=lambda _: whole,
    )
    return TrainState(
        step=whole, params=params, opt_state=opt_state, extra=jax.tree.map(lambda _: whole, abstract.extra)
    )
