"""The programs of a job, lowered for devices that need not be there: nothing is allocated and nothing runs."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from loong_jax import sharding
from loong_jax.config import ConfigError, DecodingConfig, LanguageModelJob, SamplingConfig, TokenizerJob
from loong_jax.models import transformer
from loong_jax.models.decoding import logical_axes
from loong_jax.sampling.decode import make_decoder
from loong_jax.sampling.logits import rules_of
from loong_jax.tokenizer import autoencoder
from loong_jax.tokenizer.perceptual import lpips_shapes
from loong_jax.training.lm_job import row_length
from loong_jax.training.lm_step import create_model_state, make_train_step
from loong_jax.training.optimizer import make_optimizer
from loong_jax.training.state import TrainState
from loong_jax.training.tokenizer_step import create_tokenizer_state
from loong_jax.training.tokenizer_step import make_train_step as make_tokenizer_step
from loong_jax.vocab import NUM_MARKERS


@dataclasses.dataclass(frozen=True)
class Program:
    """One program, and what stays in memory between its runs (arrays without data)."""

    lowered: jax.stages.Lowered
    params: Any
    rest: Any  # optimizer and the like of a training, the cache of sampling


def lower_tokenizer_training(job: TokenizerJob, mesh: Mesh, batch_size: int) -> Program:
    """The training step on ``batch_size`` clips."""
    _require_parts(mesh, batch_size, "clips")
    optimizer = make_optimizer(job.optimizer, job.train.num_steps, autoencoder.matrix_axes)
    state, shardings = create_tokenizer_state(job, optimizer, mesh, is_abstract=True)
    shape = (batch_size, job.data.num_frames, job.data.frame_size, job.data.frame_size, 3)
    rows = sharding.named_sharding(mesh, ("batch",) + (None,) * 4, shape)
    video = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=rows)
    weights = None
    if job.loss.perceptual_weight:
        whole = sharding.replicated(mesh)
        weights = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), lpips_shapes())
    step = make_tokenizer_step(job, optimizer, shardings, mesh)
    with jax.set_mesh(mesh):
        lowered = step.lower(state, {"video": video}, lpips_weights=weights)
    return Program(lowered, state.params, _but_params(state))


def lower_model_training(job: LanguageModelJob, mesh: Mesh, batch_size: int, length: int = 0) -> Program:
    """The training step on ``batch_size`` rows of ``length`` ids, by default of the job's."""
    _require_parts(mesh, batch_size, "rows")
    length = length or row_length(job, job.tokenizer, max(job.data.pack, 1))
    optimizer = make_optimizer(job.optimizer, job.train.num_steps, transformer.matrix_axes)
    state, shardings = create_model_state(job, optimizer, mesh, is_abstract=True)
    dtypes = dict.fromkeys(("tokens", "positions", "segment_ids", "frame_ids"), jnp.int32)
    rows = sharding.named_sharding(mesh, ("batch", None), (batch_size, length))
    axes = {"positions": (3,)} if job.model.rope == "3d" else {}
    batch = {
        name: jax.ShapeDtypeStruct((batch_size, length, *axes.get(name, ())), dtype, sharding=rows)
        for name, dtype in (dtypes | {"loss_weights": jnp.float32}).items()
    }
    num_frames = job.tokenizer.latent_frames(job.data.num_frames)
    step = make_train_step(job, num_frames, optimizer, shardings, mesh)
    with jax.set_mesh(mesh):
        return Program(step.lower(state, batch), state.params, _but_params(state))


def lower_decoding(
    job: LanguageModelJob, mesh: Mesh, batch_size: int, decoding: DecodingConfig, is_guided: bool = False
) -> Program:
    """The loop that samples the ids of a latent frame of ``batch_size`` clips."""
    _require_parts(mesh, batch_size, "prompts")
    config, rows = job.model, batch_size * (2 if is_guided else 1)
    frame_steps = job.tokenizer.latent_size(job.data.frame_size) ** 2
    num_codes = job.tokenizer.latent_frames(job.data.num_frames) * frame_steps
    decoder = make_decoder(
        config,
        mesh,
        batch=batch_size,
        is_guided=is_guided,
        num_slots=job.data.max_text_ids + NUM_MARKERS + num_codes,
        frame_steps=frame_steps,
        decoding=decoding,
    )
    _, params = transformer.abstract_params(config)
    params = _placed(params, sharding.tree_shardings(mesh, params, transformer.logical_axes(config)))

    def cut(shape, dtype):
        place = sharding.named_sharding(mesh, ("batch",) + (None,) * (len(shape) - 1), shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch_size))
    (rule,) = jax.eval_shape(lambda: rules_of(SamplingConfig(), False, 1))
    logits = cut((rows, config.num_video_ids), jnp.float32)
    codes = cut((batch_size, frame_steps), jnp.int32)
    positions = cut((rows, num_codes) if config.rope == "1d" else (rows, num_codes, 3), jnp.int32)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    params = jax.eval_shape(decoder.prepare, params)
    params = _placed(params, sharding.tree_shardings(mesh, params, logical_axes(params)))
    cache = jax.eval_shape(decoder.new_cache)
    cache = _placed(cache, cache.shardings(mesh))
    with jax.set_mesh(mesh):
        lowered = decoder.decode.lower(params, cache, logits, codes, positions, step, step, step, keys, rule)
    return Program(lowered, params, cache)


def bytes_on_device(tree: Any) -> int:
    """Of arrays without data, what one device holds."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape), dtype=np.int64)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _but_params(state: TrainState) -> Any:
    return dataclasses.replace(state, params=())


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, shardings)


def _require_parts(mesh: Mesh, batch_size: int, what: str) -> None:
    parts = sharding.num_parts(mesh, "batch")
    if batch_size % parts:
        raise ConfigError(f"batch_sizes: {batch_size} {what} cannot be shared by {parts} devices: use a multiple.")
