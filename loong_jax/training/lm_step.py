"""One training step and one evaluation step of the language model."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from loong_jax import sharding
from loong_jax.config import LanguageModelJob
from loong_jax.models import transformer
from loong_jax.training.guards import guarded
from loong_jax.training.losses import LossSums, next_id_loss
from loong_jax.training.optimizer import make_schedule
from loong_jax.training.state import TrainState, create_state, running_mean

Metrics = dict[str, jax.Array]
Batch = dict[str, Array]


def create_model_state(
    job: LanguageModelJob,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    init_params: Callable[[jax.Array], dict] | None = None,
    *,
    is_abstract: bool = False,
) -> tuple[TrainState, TrainState]:
    """The first state of a training, or its shapes alone, and the tree of its shardings."""

    def rest(key, params):
        return {"ema": jax.tree.map(jnp.copy, params)} if job.ema_decay else {}

    return create_state(
        init_params or (lambda key: transformer.init_params(job.model, key)),
        transformer.logical_axes(job.model),
        optimizer,
        mesh,
        jax.random.key(job.seed),
        rest,
        is_abstract=is_abstract,
    )


def make_loss(job: LanguageModelJob, num_frames: int) -> Callable[..., tuple[Float[Array, ""], LossSums]]:
    """Build ``(params, batch, total_weight=None, key=None) -> (objective, LossSums)``.

    Only the columns of video and special ids are computed, unless the job asks for all. ``total_weight`` is that of the
    whole batch where this is a part of it; ``key`` is for what is random in training.
    """
    graphdef, _ = transformer.abstract_params(job.model)
    first = 0 if job.loss.all_columns else job.model.num_text_ids
    start = transformer.aligned_column(first)

    def loss(params: Any, batch: Batch, total_weight: Array | None = None, key: Array | None = None):
        model = nnx.merge(graphdef, params)
        tokens, dropout_key = batch["tokens"], None
        if key is not None:
            dropout_key, corruption_key = jax.random.split(key)
            if job.loss.context_corruption:
                tokens = corrupt(tokens, batch["frame_ids"], corruption_key, job)
        # A row that is not packed is one causal sequence with its padding at the end, which every kernel can do.
        segments = batch["segment_ids"] if job.data.pack else None
        hidden = model.hidden(tokens, batch["positions"], segments, dropout_key)
        # Each place predicts the next one; the last has nothing to predict, and a length that is cut stays whole.
        following = {name: jnp.roll(batch[name], -1, axis=1) for name in ("tokens", "loss_weights", "frame_ids")}
        is_last = jnp.arange(tokens.shape[1])[None] == tokens.shape[1] - 1
        weights = jnp.where(is_last, 0, following["loss_weights"])
        return next_id_loss(
            hidden,
            model.head[...][:, start:],
            following["tokens"] - start,
            weights,
            jnp.where(is_last, -1, following["frame_ids"]),
            columns=(first - start, job.model.vocab_size - start),
            num_frames=num_frames,
            total_weight=weights.sum() if total_weight is None else total_weight,
            z_weight=job.loss.z_weight,
        )

    return loss


def corrupt(
    tokens: Int[Array, "b t"], frame_ids: Int[Array, "b t"], key: Array, job: LanguageModelJob
) -> Int[Array, "b t"]:
    """Replace a share of each row's video ids by random ones, the share uniform in [0, context_corruption)."""
    for_share, for_place, for_id = jax.random.split(key, 3)
    share = jax.random.uniform(for_share, (len(tokens), 1), maxval=job.loss.context_corruption)
    is_replaced = (jax.random.uniform(for_place, tokens.shape) < share) & (frame_ids >= 0)
    first, stop = job.model.num_text_ids, job.model.num_text_ids + job.model.num_video_ids
    return jnp.where(is_replaced, jax.random.randint(for_id, tokens.shape, first, stop), tokens)


def make_train_step(
    job: LanguageModelJob,
    num_frames: int,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Build the jitted step ``(state, batch) -> (state, metrics)``; the state is donated.

    A batch is the contract of ``data.sequences``, every array [batch, length]. With ``job.accumulate`` it is worked
    through in parts whose gradients add up to those of the whole. A step whose loss or gradients are not finite changes
    nothing but the counts of steps.
    """
    learning_rate = make_schedule(job.optimizer, job.train.num_steps)
    gradients = jax.grad(make_loss(job, num_frames), has_aux=True)

    def of_part(params, batch, total_weight, key):
        grads, sums = gradients(params, batch, total_weight, key)
        return jax.lax.with_sharding_constraint(grads, shardings.params), sums

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(job.seed), state.step)
        total_weight = batch["loss_weights"][:, 1:].sum()
        if job.accumulate == 1:
            grads, sums = of_part(state.params, batch, total_weight, key)
        else:
            # A part has rows of every device.
            parts = jax.tree.map(lambda x: x.reshape(-1, job.accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
            parts = parts | {"key": jax.random.split(key, job.accumulate)}

            def add(total, part):
                key = part.pop("key")
                part = {name: sharding.constrain(x, "batch", None) for name, x in part.items()}
                return jax.tree.map(jnp.add, total, of_part(state.params, part, total_weight, key)), None

            shapes = jax.eval_shape(of_part, state.params, batch, total_weight, key)
            grads, sums = jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), parts)[0]
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = running_mean(state.ema, params, state.step, job.ema_decay)
        metrics = sums.means()._asdict()
        metrics |= {"grad_norm": optax.tree.norm(grads), "learning_rate": learning_rate(state.step - state.skips.total)}
        after = TrainState(state.step, params, opt_state, ema=ema)
        state, counts = guarded(state, after, jnp.isfinite(metrics["loss"] + metrics["grad_norm"]))
        return state, metrics | counts

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh)))


def make_eval_step(job: LanguageModelJob, num_frames: int) -> Callable[[Any, Batch], Metrics]:
    """Build the jitted ``(params, batch) -> metrics`` on held-out sequences."""
    loss_fn = make_loss(job, num_frames)
    return jax.jit(lambda params, batch: loss_fn(params, batch)[1].means()._asdict())
