"""The optimizer and its learning-rate schedule, both from optax."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from loong_jax.config import OptimizerConfig


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, then ``config.schedule`` to ``end_fraction`` of it at ``num_steps``."""
    return _schedule(config.learning_rate, config, num_steps)


def _schedule(peak: float, config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    warmup = min(config.warmup_steps, num_steps // 2)
    first, last = peak / (warmup + 1), peak * config.end_fraction
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(first, peak, warmup, decay_steps=num_steps, end_value=last)
    decay = min(round(config.decay_share * num_steps), num_steps - warmup)
    parts = [
        optax.linear_schedule(first, peak, warmup),
        optax.constant_schedule(peak),
        optax.linear_schedule(peak, last, decay),
    ]
    return optax.join_schedules(parts, [warmup, num_steps - decay])


def make_optimizer(
    config: OptimizerConfig, num_steps: int, matrix_axes: Callable[[Any], Any] = lambda params: None
) -> optax.GradientTransformation:
    """AdamW or Muon, with global-norm clipping; weight decay spares norm scales and biases.

    Muon decays the matrices that it updates alone, not what AdamW updates beside it.

    Args:
        matrix_axes: for Muon (https://kellerjordan.github.io/posts/muon), params -> a tree that gives each matrix or
            convolution kernel its input and output axes, and None to what AdamW updates; other axes are stacks.
    """
    if config.name == "adamw":
        update = optax.adamw(
            make_schedule(config, num_steps),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=_decayed,
        )
    else:
        update = muon(
            _schedule(config.matrix_learning_rate, config, num_steps),
            weight_decay=config.weight_decay,
            adam_learning_rate=make_schedule(config, num_steps),
            adam_b1=config.b1,
            adam_b2=config.b2,
            muon_weight_dimension_numbers=lambda params: jax.tree.map(
                lambda _, axes: None if axes is None else MuonDimensionNumbers(*axes),
                params,
                matrix_axes(params),
                is_leaf=lambda leaf: leaf is None,
            ),
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def _decayed(params: Any) -> Any:
    """Whether each is, by its shape and name: the scales of a stack of layers are rows, too."""

    def is_decayed(path, p):
        return p.ndim > 1 and not jax.tree_util.keystr(path[-1:], simple=True).endswith("norm")

    return jax.tree_util.tree_map_with_path(is_decayed, params)
