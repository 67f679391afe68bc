"""Train the video tokenizer: from a TokenizerJob to a workdir with checkpoints."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from loong_jax import checkpoint, sharding
from loong_jax.config import TokenizerJob
from loong_jax.config_dict import to_json_dict
from loong_jax.data.loader import video_batches
from loong_jax.data.sources import make_source
from loong_jax.tokenizer import autoencoder
from loong_jax.tokenizer.quantizer import ClusterState
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.training import loop
from loong_jax.training.metrics import say
from loong_jax.training.optimizer import make_optimizer
from loong_jax.training.state import TrainState, create_state
from loong_jax.training.tokenizer_step import make_eval_step, make_train_step
from loong_jax.video import contact_sheet, write_image

_NUM_SHOWN = 8  # held-out videos, and frames of each, in the picture of reconstructions


def train_tokenizer(job: TokenizerJob, workdir: Path) -> VideoTokenizer:
    """Train, or go on training, in ``workdir``; returns the trained tokenizer.

    Raises:
        ValueError: ``init_from`` is not a tokenizer training of this architecture, or the data cannot be read.
    """
    mesh = sharding.make_mesh(job.mesh)
    train_source = make_source(job.data, "train")
    test_source = make_source(job.data, "test")
    process = dict(process_index=jax.process_index(), process_count=jax.process_count())
    batches = video_batches(train_source, job.data, batch_size=job.train.batch_size, seed=job.seed, **process)
    optimizer = make_optimizer(job.optimizer, job.train.num_steps, autoencoder.matrix_axes)
    state, shardings = create_state(
        lambda key: autoencoder.init_params(job.tokenizer, key),
        autoencoder.logical_axes(job.tokenizer),
        optimizer,
        mesh,
        jax.random.key(job.seed),
        lambda key: ClusterState.create(job.tokenizer.quantizer, key),
    )
    if job.init_from:
        state = _start_from(state, (workdir / job.init_from).resolve())
    eval_step = make_eval_step(job, _NUM_SHOWN)
    # The same held-out examples at every evaluation.
    held_out = [
        {"video": np.stack([test_source[batch * job.train.batch_size + row]["video"] for row in rows])}
        for rows in [range(job.train.batch_size)]
        for batch in range(job.train.eval_batches)
    ]

    def evaluate(state: TrainState) -> dict:
        results = [eval_step(state.params, sharding.shard_batch(mesh, batch)) for batch in held_out]
        used = np.unique(np.concatenate([np.asarray(result.ids).reshape(-1) for result in results]))
        if jax.process_index() == 0:
            picture = workdir / "samples" / "reconstruction.png"
            _draw_reconstructions(held_out[0]["video"][:_NUM_SHOWN], np.asarray(results[0].shown), picture)
        return {
            "psnr": np.mean([np.asarray(result.psnr) for result in results]),
            "codebook_usage": len(used) / job.tokenizer.quantizer.num_codes,
        }

    state = loop.run(
        loop.Training(
            title=f"tokenizer ({job.data.num_frames} frames)",
            workdir=workdir,
            config=job.train,
            mesh=mesh,
            state=state,
            step=make_train_step(job, optimizer, shardings, mesh),
            batches=batches.iterate,
            evaluate=evaluate,
            shown=("psnr", "codebook_usage", "codebook_perplexity"),
            meta={"config": to_json_dict(job)},
        )
    )
    return VideoTokenizer(job.tokenizer, state.params)


def _draw_reconstructions(originals: np.ndarray, decoded: np.ndarray, path: Path) -> None:
    """A strip of each held-out video over its reconstruction; for single frames, all side by side."""
    if originals.shape[1] == 1:
        rows = [originals[:, 0], decoded[:, 0]]
    else:
        rows = [video for pair in zip(originals, decoded, strict=True) for video in pair]
    write_image(path, contact_sheet(rows, columns=min(len(rows[0]), _NUM_SHOWN)))


def _start_from(state: TrainState, workdir: Path) -> TrainState:
    """Take the parameters and cluster state of another training; step count and moments stay fresh."""
    say(f"starting from the tokenizer in {workdir}")
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    other = checkpoint.load_parts(workdir, {"params": abstract.params, "extra": abstract.extra})
    return dataclasses.replace(state, **other)
