"""One training step and one evaluation step of the language model."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from loong_jax import sharding
from loong_jax.config import LanguageModelJob
from loong_jax.models import transformer
from loong_jax.training.losses import NextIdLoss, next_id_loss
from loong_jax.training.optimizer import make_schedule
from loong_jax.training.state import TrainState

Metrics = dict[str, jax.Array]
Batch = dict[str, Array]


def make_loss(job: LanguageModelJob, num_frames: int) -> Callable[[Any, Batch], NextIdLoss]:
    """Build ``(params, batch) -> NextIdLoss``; only the columns of video and special ids are computed."""
    graphdef, _ = transformer.abstract_params(job.model)
    first_column = job.model.num_text_ids

    def loss(params: Any, batch: Batch) -> NextIdLoss:
        model = nnx.merge(graphdef, params)
        hidden = model.hidden(batch["tokens"], batch["positions"], batch["segment_ids"])
        logits = model.logits(hidden[:, :-1], first_column, job.model.vocab_size)
        following = {name: value[:, 1:] for name, value in batch.items()}
        return next_id_loss(
            logits,
            following["tokens"] - first_column,
            following["loss_weights"],
            following["frame_ids"],
            num_frames,
        )

    return loss


def make_train_step(
    job: LanguageModelJob,
    num_frames: int,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Build the jitted step ``(state, batch) -> (state, metrics)``; the state is donated.

    A batch is the contract of ``data.sequences``, every array [batch, length].
    """
    loss_fn = make_loss(job, num_frames)
    learning_rate = make_schedule(job.optimizer, job.train.num_steps)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        def objective(params):
            result = loss_fn(params, batch)
            return result.loss, result

        grads, result = jax.grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = result._asdict() | {"grad_norm": optax.tree.norm(grads), "learning_rate": learning_rate(state.step)}
        return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state, ()), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh)))


def make_eval_step(job: LanguageModelJob, num_frames: int) -> Callable[[Any, Batch], Metrics]:
    """Build the jitted ``(params, batch) -> metrics`` on held-out sequences."""
    loss_fn = make_loss(job, num_frames)
    return jax.jit(lambda params, batch: loss_fn(params, batch)._asdict())
