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
class Skips:
    """Steps that were not finite and changed nothing (int32): all so far, and the last ones in a row."""

    total: jax.Array
    in_a_row: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Step count (int32), parameters (float32) and optimizer state; the rest is () where it is unused."""

    step: jax.Array
    params: Any
    opt_state: Any
    clusters: Any = ()  # what the tokenizer's codebook remembers
    adversary: Any = ()  # its discriminator, with an optimizer state of its own
    ema: Any = ()  # running mean of params
    skips: Any = ()  # steps that were not finite

    @property
    def best_params(self) -> Any:
        """The parameters to evaluate and to use."""
        return self.ema if jax.tree.leaves(self.ema) else self.params


def running_mean(mean: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """The mean after one more step, shorter at the start; () where there is none (decay 0)."""
    if not decay:
        return ()
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda mean, new: mean + (1 - decay) * (new - mean), mean, params)


def create_state(
    init_params: Callable[[jax.Array], Any],
    axes: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    key: jax.Array,
    init_rest: Callable[[jax.Array, Any], dict] = lambda key, params: {},
    adversary_axes: Any = None,
    is_abstract: bool = False,
) -> tuple[TrainState, TrainState]:
    """Create the state directly in its sharding; no device ever holds more than its part.

    Args:
        init_params: key -> parameters.
        axes: tree of logical axes, one tuple per parameter.
        init_rest: (key, parameters) -> the state's other fields by name.
        adversary_axes: logical axes of the discriminator's parameters, if there is one.
        is_abstract: only shapes and shardings, no arrays.

    Returns:
        The state, and the tree of its NamedShardings.
    """

    def init(key):
        params = init_params(key)
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, params, optimizer.init(params), skips=Skips(zero, zero), **init_rest(key, params))

    abstract = jax.eval_shape(init, key)
    shardings = state_shardings(abstract, axes, mesh, adversary_axes)
    if is_abstract:
        return jax.tree.map(lambda x, place: x.update(sharding=place), abstract, shardings), shardings
    return jax.jit(init, out_shardings=shardings)(key), shardings


def state_shardings(abstract: TrainState, axes: Any, mesh: Mesh, adversary_axes: Any = None) -> TrainState:
    """Shardings of a state: moments and means lie where their parameter lies, everything else is replicated."""
    trees = [(abstract.params, axes)]
    if adversary_axes is not None:
        trees.append((abstract.adversary.params, adversary_axes))
    places = {}
    for params, params_axes in trees:
        shardings = sharding.tree_shardings(mesh, params, params_axes)
        leaves = jax.tree_util.tree_leaves_with_path(params)
        places |= {(path, x.shape): place for (path, x), place in zip(leaves, jax.tree.leaves(shardings), strict=True)}
    whole = sharding.replicated(mesh)

    def of_leaf(path, leaf):
        # A moment's path ends in its parameter's, whatever the optimizer wraps around it.
        ends = (places.get((path[start:], leaf.shape)) for start in range(len(path)))
        return next((place for place in ends if place is not None), whole)

    return jax.tree_util.tree_map_with_path(of_leaf, abstract)
