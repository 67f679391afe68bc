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
    shardings = state_shardings(abstract, axes, mesh)
    return jax.jit(init, out_shardings=shardings)(key), shardings


def state_shardings(abstract: TrainState, axes: Any, mesh: Mesh) -> TrainState:
    """Shardings of a state: every moment lies where its parameter lies, everything else is replicated."""
    params = sharding.tree_shardings(mesh, abstract.params, axes)
    whole = sharding.replicated(mesh)
    paths = jax.tree_util.tree_leaves_with_path(abstract.params)
    places = {(path, leaf.shape): place for (path, leaf), place in zip(paths, jax.tree.leaves(params), strict=True)}

    def of_moment(path, leaf):
        # A moment's path ends in its parameter's, whatever the optimizer wraps around it.
        ends = (places.get((path[start:], leaf.shape)) for start in range(len(path)))
        return next((place for place in ends if place is not None), whole)

    return TrainState(
        step=whole,
        params=params,
        opt_state=jax.tree_util.tree_map_with_path(of_moment, abstract.opt_state),
        extra=jax.tree.map(lambda _: whole, abstract.extra),
    )
