"""Train the video tokenizer: from a TokenizerJob to a workdir with checkpoints."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from loong_jax import checkpoint, sharding
from loong_jax.config import TokenizerJob
from loong_jax.data.loader import video_batches
from loong_jax.data.sources import check_there, make_source
from loong_jax.evaluation.reconstruction import codebook_usage, perplexity
from loong_jax.tokenizer import autoencoder
from loong_jax.tokenizer.perceptual import load_weights
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer, load_job
from loong_jax.training import loop
from loong_jax.training.metrics import dispensable, say
from loong_jax.training.optimizer import make_optimizer
from loong_jax.training.provenance import check_same_model, describe
from loong_jax.training.state import TrainState
from loong_jax.training.throughput import Work
from loong_jax.training.tokenizer_step import create_tokenizer_state, make_eval_step, make_train_step
from loong_jax.video import Image, write_strip

_NUM_SHOWN = 8  # held-out videos in the picture of reconstructions


def train_tokenizer(job: TokenizerJob, workdir: Path) -> VideoTokenizer:
    """Train, or go on training, in ``workdir``; returns the trained tokenizer.

    Raises:
        ValueError: ``init_from`` is not a tokenizer training of this architecture, the mesh cannot cut the batch or the
            model, or the data cannot be read.
    """
    check_there(job.data)
    meta, init_from = describe(job), None
    if job.init_from and not checkpoint.has_any(workdir):
        init_from = (workdir / job.init_from).resolve()
        load_job(init_from)
        check_same_model(checkpoint.load_meta(init_from), meta, init_from)
    mesh = sharding.make_mesh(job.mesh)
    sharding.check_batch(mesh, job.train.batch_size)
    bad_list = workdir / "bad_media.jsonl"
    train_source = make_source(job.data, "train", bad_list=bad_list)
    test_source = make_source(job.data, "test", bad_list=bad_list)
    index, count = sharding.batch_share(mesh)
    images = None
    if job.data.image_share:
        images = make_source(job.data, "train", source=job.data.image_source, num_frames=1, bad_list=bad_list)
    batches = video_batches(
        train_source,
        job.data,
        images=images,
        batch_size=job.train.batch_size,
        seed=job.seed,
        process_index=index,
        process_count=count,
    )
    optimizer = make_optimizer(job.optimizer, job.train.num_steps, autoencoder.matrix_axes)
    state, shardings = create_tokenizer_state(job, optimizer, mesh)
    if init_from is not None:
        state = _start_from(state, init_from)
    lpips_weights = None
    if job.loss.perceptual_weight or job.measure_lpips:
        lpips_weights = load_weights(job.loss.perceptual_weights)
    eval_step = make_eval_step(job, _NUM_SHOWN, lpips_weights if job.measure_lpips else None)
    # The same held-out examples at every evaluation; of each batch this process's share.
    rows = job.train.batch_size // count
    starts = [batch * job.train.batch_size + index * rows for batch in range(job.train.eval_batches)]
    held_out = [{"video": np.stack([test_source[start + row]["video"] for row in range(rows)])} for start in starts]

    pictures: dict[str, Image] = {}  # of the last evaluation

    def evaluate(state: TrainState) -> dict:
        results = [eval_step(state.best_params, sharding.shard_batch(mesh, batch)) for batch in held_out]
        ids = np.concatenate([np.asarray(result.ids).reshape(-1) for result in results])
        if jax.process_index() == 0:
            originals, decoded = np.asarray(results[0].originals), np.asarray(results[0].shown)
            with dispensable(workdir / "samples"):
                strip = write_strip(workdir / "samples" / "reconstruction", originals, decoded, job.data.fps)
                pictures["reconstruction"] = strip
        return {
            **{name: np.mean([np.asarray(result.scores[name]) for result in results]) for name in results[0].scores},
            "codebook_usage": codebook_usage(ids, job.tokenizer.quantizer.num_codes),
            "codebook_perplexity": perplexity(ids, job.tokenizer.quantizer.num_codes),
        }

    state = loop.run(
        loop.Training(
            title=f"tokenizer ({job.data.num_frames} frame{'s' * (job.data.num_frames > 1)})",
            workdir=workdir,
            config=job.train,
            mesh=mesh,
            state=state,
            step=make_train_step(job, optimizer, shardings, mesh, lpips_weights),
            batches=batches.iterate,
            evaluate=evaluate,
            work=Work("frames"),
            shown=("psnr", "ssim", "lpips", "codebook_usage", "codebook_perplexity"),
            meta=meta,
            alarm=lambda metrics: _alarm(job, metrics),
            draw=lambda records: pictures,
        )
    )
    return VideoTokenizer(job.tokenizer, state.best_params, job.data.frame_size)


def _alarm(job: TokenizerJob, metrics: dict) -> str:
    quantizer = job.tokenizer.quantizer
    if metrics["codebook_alive"] < quantizer.usage_alarm:
        return (
            f"only {metrics['codebook_alive']:.0%} of the codes were used in the last {quantizer.dead_after} steps: "
            "the codebook is collapsing; use quantizer.clustering=True, or a smaller decay or learning rate."
        )
    return ""


def _start_from(state: TrainState, workdir: Path) -> TrainState:
    """Take the parameters and cluster state of another training; step count and moments stay fresh."""
    say(f"starting from the tokenizer in {workdir}")
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    stored = checkpoint.load_meta(workdir)
    params = checkpoint.load_weights(workdir, abstract.params, stored["config"].get("ema_decay", 0.0))
    clusters = checkpoint.load_parts(workdir, {"clusters": abstract.clusters})["clusters"]
    ema = jax.tree.map(jnp.copy, params) if jax.tree.leaves(state.ema) else ()
    return dataclasses.replace(state, params=params, clusters=clusters, ema=ema)
