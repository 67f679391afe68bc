"""Train one stage of the language model: from a LanguageModelJob to a workdir with checkpoints."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from loong_jax import checkpoint, sharding
from loong_jax.config import (
    ConfigError,
    LanguageModelJob,
    LossConfig,
    MeshConfig,
    TokenizerConfig,
    is_tokens,
    parse_sources,
    require,
)
from loong_jax.data.lm_batches import EncodedBatches, language_model_batches
from loong_jax.data.loader import Batches
from loong_jax.data.sequences import static_length
from loong_jax.data.sources import check_there, make_source, mixed
from loong_jax.data.text import NUM_TEXT_IDS, TextTokenizer
from loong_jax.data.token_cache import TokenCache
from loong_jax.models import transformer
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.training import loop
from loong_jax.training.lm_step import create_model_state, make_eval_step, make_train_step
from loong_jax.training.loss_picture import draw_loss_by_frame
from loong_jax.training.mesh_choice import Shapes, choose_mesh, present_devices
from loong_jax.training.metrics import say
from loong_jax.training.optimizer import make_optimizer
from loong_jax.training.provenance import check_same_model, describe
from loong_jax.training.state import TrainState
from loong_jax.training.throughput import Work, training_flops_per_token
from loong_jax.training.tokenize import tokenize
from loong_jax.video import Image
from loong_jax.vocab import Vocabulary


def train_language_model(
    job: LanguageModelJob,
    workdir: Path,
    token_dir: Path | None = None,
    preview: Callable[[Any, VideoTokenizer, list[str]], dict[str, Image]] | None = None,
) -> Any:
    """Train, or go on training, in ``workdir``; returns the trained parameters.

    Args:
        job: the settings.
        workdir: where checkpoints and metrics go.
        token_dir: where the ids of the frozen tokenizer are kept; ``<workdir>/tokens`` by default.
        preview: samples ``job.num_previews`` held-out texts, and makes pictures of them.

    Raises:
        ValueError: the tokenizer or the stage before is missing or does not fit, the mesh cannot cut the batch or the
            model, or the data cannot be read.
    """
    check_there(job.data)
    stage_before = _find_stage_before(job, workdir)
    tokenizer = find_tokenizer(job, workdir)
    check_fits(job, tokenizer)
    meta = describe(
        job, tokenizer_fingerprint=tokenizer.fingerprint, text_tokenizer_fingerprint=TextTokenizer().fingerprint
    )
    if stage_before is not None:
        check_same_model(checkpoint.load_meta(stage_before), meta, stage_before)
    mesh = sharding.make_mesh(_chosen_mesh(job, tokenizer) if job.choose_mesh else job.mesh)
    _check_mesh(job, mesh)
    frames = tokenizer.config.latent_frames(job.data.num_frames)
    train, test, texts = _batches(job, tokenizer, frames, token_dir or workdir / "tokens", sharding.batch_share(mesh))
    optimizer = make_optimizer(job.optimizer, job.train.num_steps, transformer.matrix_axes)

    def init_params(key: jax.Array) -> dict:
        params = transformer.init_params(job.model, key)
        if job.codebook_init:
            params = transformer.embed_codes(params, job.model, tokenizer.codebook, jax.random.fold_in(key, 1))
        return params

    state, shardings = create_model_state(job, optimizer, mesh, init_params)
    if stage_before is not None:
        state = _start_from(state, stage_before)
    eval_step = make_eval_step(job, frames)
    stream = test.iterate(0)
    held_out = [next(stream) for _ in range(job.train.eval_batches)]

    pictures: dict[str, Image] = {}  # of the last evaluation

    def evaluate(state: TrainState) -> dict:
        if preview is not None and texts:
            pictures.update(preview(state.best_params, tokenizer, texts))
        results = [eval_step(state.best_params, sharding.shard_batch(mesh, batch)) for batch in held_out]
        return jax.tree.map(lambda *values: np.mean(values, axis=0), *jax.device_get(results))

    length = row_length(job, tokenizer.config)
    state = loop.run(
        loop.Training(
            title=workdir.name,
            workdir=workdir,
            config=job.train,
            mesh=mesh,
            state=state,
            step=make_train_step(job, frames, optimizer, shardings, mesh),
            batches=train.iterate,
            evaluate=evaluate,
            # A place sees no more than its own sequence, of which a row can have several.
            work=Work("tokens", training_flops_per_token(job.model, length, job.loss.all_columns)),
            shown=("loss", "accuracy"),
            meta=meta,
            draw=lambda records: draw_loss_by_frame(records) | pictures,
        )
    )
    return state.best_params


def find_tokenizer(job: LanguageModelJob, workdir: Path) -> VideoTokenizer:
    """The frozen tokenizer that ``job`` names; a random one where that is missing and the job allows it."""
    path = (workdir / job.tokenizer_path).resolve()
    if job.allow_untrained_tokenizer and not path.is_dir():
        say(f"no tokenizer in {path}: using a random one, which is good for debugging only")
        return VideoTokenizer.untrained(job.tokenizer)
    if not path.is_dir():
        raise ValueError(
            f"There is no trained tokenizer in {path}: train one with "
            f"`python -m loong_jax.main --config=configs/tokenizer.py --workdir={path}`, "
            "or name another with --config.tokenizer_path=DIR (relative to the workdir)."
        )
    return VideoTokenizer.load(path)


_TEXT_IDS = f"the text tokenizer has {NUM_TEXT_IDS:,} ids"


def check_fits(job: LanguageModelJob, tokenizer: VideoTokenizer) -> None:
    """Raise ValueError where the tokenizer's ids do not fit the model's vocabulary or length."""
    num_codes = tokenizer.config.quantizer.num_codes
    if num_codes != job.model.num_video_ids:
        raise ValueError(
            f"The tokenizer has {num_codes} codes but model.num_video_ids is {job.model.num_video_ids}: "
            f"set --config.model.num_video_ids={num_codes}, or use the tokenizer that the model was made for."
        )
    require(job.model.num_text_ids >= NUM_TEXT_IDS, "model.num_text_ids", job.model.num_text_ids, _TEXT_IDS)
    data, factor = job.data, tokenizer.config.temporal_factor
    is_read = {"num_frames": True, "cached_frames": data.cached_frames, "reencoded_frames": data.reencoded_share}
    for field in (field for field, is_so in is_read.items() if is_so):
        frames = getattr(data, field)
        require((frames - 1) % factor == 0, f"data.{field}", frames, f"it must be 1 + a multiple of {factor}")
    length = row_length(job, tokenizer.config)
    if length > job.model.max_length:
        raise ValueError(
            f"{job.data.num_frames} frames of {job.data.frame_size} pixels with their text make sequences of {length} "
            f"ids, but model.max_length is {job.model.max_length}: raise it, or lower data.num_frames."
        )


def row_length(job: LanguageModelJob, tokenizer: TokenizerConfig, count: int = 1) -> int:
    """Ids in a row of the batch with room for ``count`` clips."""
    size = tokenizer.latent_size(job.data.frame_size)
    num_codes = tokenizer.latent_frames(job.data.num_frames) * size**2
    return static_length(num_codes, job.data.max_text_ids, count)


def _chosen_mesh(job: LanguageModelJob, tokenizer: VideoTokenizer) -> MeshConfig:
    """The mesh that fits the devices there are."""
    length = row_length(job, tokenizer.config, max(job.data.pack, 1))
    itemsize = transformer.compute_dtype(job.model).itemsize
    needs = choose_mesh(Shapes(job.model, job.train.batch_size, length, itemsize, job.accumulate), present_devices())
    say(f"chose a mesh of {needs}")
    return dataclasses.replace(needs.mesh, num_slices=job.mesh.num_slices)


def _check_mesh(job: LanguageModelJob, mesh: Mesh) -> None:
    """Find what ``mesh`` cannot cut, before hours go into the data."""
    sharding.check_batch(mesh, job.train.batch_size, ", or --config.choose_mesh=True, which finds one")
    parts, rows = sharding.num_parts(mesh, "batch"), job.train.batch_size // job.accumulate
    if rows % parts:
        raise ConfigError(
            f"accumulate={job.accumulate} takes {rows} rows of train.batch_size={job.train.batch_size} at a time, and "
            f"they cannot be cut into {parts} parts (mesh.data x mesh.fsdp): use "
            f"--config.accumulate={math.gcd(job.accumulate, job.train.batch_size // parts)}."
        )
    sharding.tree_shardings(mesh, transformer.abstract_params(job.model)[1], transformer.logical_axes(job.model))


def _batches(
    job: LanguageModelJob, tokenizer: VideoTokenizer, frames: int, token_dir: Path, share: tuple[int, int]
) -> tuple[Batches | EncodedBatches, Batches, list[str]]:
    """The batches to train on, the held-out ones, and held-out texts to sample."""
    data = job.data
    common = dict(
        vocabulary=Vocabulary(job.model.num_text_ids, job.model.num_video_ids),
        latent_frames=frames,
        batch_size=job.train.batch_size,
        seed=job.seed,
        rope=job.model.rope,
        process_index=share[0],
        process_count=share[1],
    )
    image_source = data.image_source or data.source
    source = image_source if frames == 1 else data.source
    clip_frames = data.cached_frames or data.num_frames
    num_held_out = job.train.batch_size * max(job.train.eval_batches, 1)
    held_out = _cached(job, tokenizer, token_dir, "test", source, num_held_out, clip_frames)
    # Held-out losses are plain cross-entropy, so that runs with other weights can be compared.
    plain, one_each = LossConfig(early_weight=0.0), dataclasses.replace(data, pack=0)
    test = language_model_batches(held_out, None, one_each, plain, length=row_length(job, tokenizer.config), **common)
    text = TextTokenizer()
    shown = [held_out[index]["text_ids"] for index in range(min(job.num_previews, len(held_out)))]
    texts = [text.decode(ids[: data.max_text_ids]) for ids in shown]
    texts = [shown for shown in texts if shown.strip()]

    clips, images, reencoded = None, None, None
    if data.cache_ids or is_tokens(source):
        if frames == 1 or data.image_share > 0 or data.pack:
            images = _cached(job, tokenizer, token_dir, "train", image_source, data.num_images, 1)
        if frames > 1:
            clips = _cached(job, tokenizer, token_dir, "train", source, data.num_clips, clip_frames)
        if frames > 1 and data.reencoded_share:
            path = token_dir / f"train_reencoded_{data.reencoded_frames}_of_{clip_frames}_{data.num_clips}"
            options = dict(num_frames=clip_frames, reencoded_frames=data.reencoded_frames)
            reencoded = tokenize(tokenizer, data, "train", data.num_clips, path, **options)
        common |= dict(reencoded=reencoded, length=row_length(job, tokenizer.config, max(data.pack, 1)))
        return language_model_batches(clips or images, images, data, job.loss, **common), test, texts
    options = dict(needs_caption=data.require_caption, bad_list=token_dir.with_name("bad_media.jsonl"))
    if frames == 1 or data.image_share > 0:
        images = make_source(data, "train", source=image_source, num_frames=1, num_examples=data.num_images, **options)
    if frames > 1:
        clips = make_source(data, "train", num_examples=data.num_clips, **options)
    pixels = dict(encode=tokenizer.encode, text=text, length=row_length(job, tokenizer.config))
    return EncodedBatches(clips or images, images, data, job.loss, **pixels, **common), test, texts


def _cached(
    job: LanguageModelJob,
    tokenizer: VideoTokenizer,
    token_dir: Path,
    split: str,
    source: str,
    count: int,
    num_frames: int,
) -> Any:
    """The ids of a source: read where they are, or made and kept in ``token_dir``."""
    if not is_tokens(source):
        kind = "images" if num_frames == 1 and split == "train" else "clips"
        path = token_dir / f"{split}_{kind}_{num_frames}_{count}"
        return tokenize(tokenizer, job.data, split, count, path, source=source, num_frames=num_frames)
    caches, weights = [], []
    for name in parse_sources("data.source", source):
        if not (Path(name.where) / split).is_dir():
            raise ValueError(f"{name}: there is no folder {split} in it; give the workdir of a configs/tokenize.py.")
        cache = TokenCache(Path(name.where) / split, tokenizer.fingerprint, TextTokenizer().fingerprint)
        size = tokenizer.config.latent_size(job.data.frame_size)
        wanted = (tokenizer.config.latent_frames(num_frames), size, size)
        is_as_fast = cache.meta.fps == job.data.fps or num_frames == 1
        if cache.meta.grid[0] < wanted[0] or cache.meta.grid[1:] != wanted[1:] or not is_as_fast:
            raise ValueError(
                f"{name.where} holds ids {cache.meta.grid} of clips at {cache.meta.fps:g} frames per second, and "
                f"{wanted} (or more frames) at {job.data.fps:g} are needed: change data.num_frames, data.frame_size or "
                "data.fps, or tokenize again."
            )
        caches.append(cache)
        weights.append(name.weight)
    return mixed(caches, weights)


def _find_stage_before(job: LanguageModelJob, workdir: Path) -> Path | None:
    """The workdir that ``job`` starts from; a training that has begun needs it no more."""
    if not job.init_from or checkpoint.has_any(workdir):
        return None
    path = (workdir / job.init_from).resolve()
    if not path.is_dir():
        raise ValueError(
            f"There is no training in {path} to start from: train that stage first, or start from "
            "scratch with --config.init_from=''."
        )
    return path


def _start_from(state: TrainState, workdir: Path) -> TrainState:
    """Take the parameters of the stage before; step count and moments stay fresh."""
    stored = checkpoint.load_meta(workdir)
    say(f"starting from the parameters in {workdir}")
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state.params)
    params = checkpoint.load_weights(workdir, abstract, stored["config"].get("ema_decay", 0.0))
    ema = jax.tree.map(jnp.copy, params) if jax.tree.leaves(state.ema) else ()
    return dataclasses.replace(state, params=params, ema=ema)
