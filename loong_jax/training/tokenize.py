"""Fill a token cache: a frozen tokenizer over the examples of a source, shard by shard."""

import collections
import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from loong_jax import distributed
from loong_jax.config import DataConfig, TokenizeJob
from loong_jax.data.loader import read_in_order
from loong_jax.data.sources import make_source
from loong_jax.data.text import TextTokenizer
from loong_jax.data.token_cache import CacheMeta, TokenCache, TokenCacheWriter, TokenExample
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.training.metrics import ProgressReport, say

# What of the data config decides the pixels that are encoded.
_SOURCE_FIELDS = (
    "frame_size",
    "fps",
    "two_digit_share",
    "held_out_every",
    "min_brightness",
    "min_motion",
    "require_caption",
)
_ROWS_PER_CALL = 16


def run_tokenize(job: TokenizeJob, workdir: Path) -> None:
    """Turn a source into token shards, ``workdir``/train and ``workdir``/test, which ``tokens:DIR`` reads.

    Raises:
        ValueError: the tokenizer is missing, or the source cannot be read.
    """
    tokenizer = VideoTokenizer.load((workdir / job.tokenizer_path).resolve())
    for split, count in (("train", job.data.num_clips), ("test", job.num_held_out)):
        cache = tokenize(tokenizer, job.data, split, count, workdir / split)
        grid = " x ".join(map(str, cache.meta.grid))
        say(f"{workdir / split}: {len(cache)} clips of {grid} ids")


def tokenize(
    tokenizer: VideoTokenizer,
    data: DataConfig,
    split: str,
    num_examples: int,
    path: Path,
    *,
    source: str = "",
    num_frames: int | None = None,
    reencoded_frames: int = 0,
    devices: Sequence[jax.Device] | None = None,
) -> TokenCache:
    """Encode the first ``num_examples`` clips of a source; shards that are already there are kept.

    Args:
        tokenizer: the frozen one.
        data: the settings.
        split: "train" or "test".
        num_examples: how many clips; 0: one of each medium.
        path: the folder of the cache.
        source: in place of ``data.source``.
        num_frames: of a clip, in place of ``data.num_frames``.
        reencoded_frames: above 0, the ids are those of so many frames of each clip, decoded from its own ids.
        devices: that encode, by default all accelerators of this host, or the CPU. Hosts write shards of their own.

    Raises:
        ValueError: ``path`` holds ids of something else, or the source cannot be read.
    """
    name, frames = source or data.source, num_frames or data.num_frames
    examples = make_source(
        data,
        split,
        source=name,
        num_frames=frames,
        num_examples=num_examples,
        needs_caption=data.require_caption,
        bad_list=path / "bad_media.jsonl",
    )
    text = TextTokenizer()
    config, size = tokenizer.config, tokenizer.config.latent_size(data.frame_size)
    fields = dataclasses.asdict(data)
    meta = CacheMeta(
        fingerprint=tokenizer.fingerprint,
        text_fingerprint=text.fingerprint,
        source={"source": name, "split": split, "num_frames": frames}
        | ({"reencoded_frames": reencoded_frames} if reencoded_frames else {})
        | {key: fields[key] for key in _SOURCE_FIELDS},
        num_examples=len(examples),
        grid=(config.latent_frames(reencoded_frames or frames), size, size),
        num_codes=config.quantizer.num_codes,
        fps=data.fps,
    )
    writer = TokenCacheWriter(path, meta)
    missing = writer.missing_shards(jax.process_index(), jax.process_count())
    if missing:
        wanted = [index for _, indices in missing for index in indices]
        batches = _batches(read_in_order(examples, wanted, data), [indices for _, indices in missing])
        done = _in_order(batches, _encoders(tokenizer, text, reencoded_frames, devices))
        what = "images" if frames == 1 else f"clips of {frames} frames"
        progress = ProgressReport(f"encoding {len(examples)} {split} {what}", len(examples))
        with contextlib.closing(progress):
            for shard, indices in missing:
                rows = list(itertools.islice(done, -(-len(indices) // _ROWS_PER_CALL)))
                writer.write(shard, [row for batch in rows for row in batch])
                rate = progress.rate(indices.stop)
                progress.report(indices.stop, f"{rate:.1f} a second" if rate else "", rate)
                if not rate:  # the first shard's time is compiling
                    progress.start_clock(indices.stop)
    distributed.meet(f"tokens in {path}")
    return TokenCache(path, meta.fingerprint, meta.text_fingerprint)


def _batches(examples: Iterator[dict], shards: list[range]) -> Iterator[list[dict]]:
    """The examples in batches that do not straddle shards."""
    for indices in shards:
        for start in range(0, len(indices), _ROWS_PER_CALL):
            yield list(itertools.islice(examples, min(_ROWS_PER_CALL, len(indices) - start)))


def _encoders(
    tokenizer: VideoTokenizer, text: TextTokenizer, reencoded_frames: int, devices: Sequence[jax.Device] | None
) -> list:
    """A function from a batch of examples to its ids for each device."""
    if devices is None:
        devices = jax.local_devices() if jax.default_backend() != "cpu" else jax.local_devices()[:1]

    def encoder(device: jax.Device):
        on_device = tokenizer.on(device)
        return lambda examples: _encode(on_device, text, reencoded_frames, examples)

    return [encoder(device) for device in devices]


def _encode(
    tokenizer: VideoTokenizer, text: TextTokenizer, reencoded_frames: int, examples: list[dict]
) -> list[TokenExample]:
    videos = np.stack([example["video"][: reencoded_frames or None] for example in examples])
    # A last call with fewer rows would compile again: fill it up and cut the result.
    padding = np.zeros((_ROWS_PER_CALL - len(examples), *videos.shape[1:]), np.uint8)
    codes = tokenizer.encode(np.concatenate([videos, padding]))
    if reencoded_frames:  # the tokenizer is causal: the first ids decode to the first frames, whatever follows
        codes = tokenizer.encode(tokenizer.decode(codes))
    return [
        TokenExample(row, text.encode(example["caption"]), example["key"])
        for row, example in zip(codes, examples, strict=False)
    ]


def _in_order(batches: Iterator[Any], functions: list) -> Iterator[Any]:
    """What the functions, one thread each, make of the batches in turn; few batches are in memory."""
    with ThreadPoolExecutor(len(functions)) as threads:
        waiting: collections.deque[Future] = collections.deque()
        for function, batch in zip(itertools.cycle(functions), batches, strict=False):
            waiting.append(threads.submit(function, batch))
            if len(waiting) > len(functions):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
