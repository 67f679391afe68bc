"""Fill a token cache: a frozen tokenizer over the examples of a source, shard by shard."""

import dataclasses
from pathlib import Path

import numpy as np

from loong_jax.config import DataConfig
from loong_jax.data.sources import make_source
from loong_jax.data.token_cache import CacheMeta, TokenCache, TokenCacheWriter
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.training.metrics import ProgressReport

# What of the data config decides the pixels that are encoded.
_SOURCE_FIELDS = (
    "source",
    "path",
    "frame_size",
    "fps",
    "two_digit_share",
    "held_out_every",
    "min_brightness",
    "min_motion",
)
_ROWS_PER_CALL = 16


def tokenize(
    tokenizer: VideoTokenizer, data: DataConfig, split: str, num_examples: int, num_frames: int, path: Path
) -> TokenCache:
    """Encode the first ``num_examples`` examples of ``num_frames`` frames; what is already cached is kept."""
    source = make_source(
        data, split, num_frames=num_frames, num_examples=num_examples, bad_list=path / "bad_media.jsonl"
    )
    config, size = tokenizer.config, tokenizer.config.latent_size(data.frame_size)
    fields = dataclasses.asdict(data)
    meta = CacheMeta(
        fingerprint=tokenizer.fingerprint,
        source={"split": split, "num_frames": num_frames} | {name: fields[name] for name in _SOURCE_FIELDS},
        num_examples=num_examples,
        grid=(config.latent_frames(num_frames), size, size),
        num_codes=config.quantizer.num_codes,
    )
    writer = TokenCacheWriter(path, meta)
    missing = writer.missing_shards()
    if missing:
        progress = ProgressReport(f"encoding {num_examples} {split} clips of {num_frames} frames", num_examples)
        for shard, examples in missing:
            codes, captions = _encode(tokenizer, source, examples)
            writer.write(shard, codes, captions)
            progress.report(examples.stop, "")
        progress.close()
    return TokenCache(path, meta.fingerprint)


def _encode(tokenizer: VideoTokenizer, source, examples: range) -> tuple[np.ndarray, list[str]]:
    codes, captions = [], []
    for start in range(examples.start, examples.stop, _ROWS_PER_CALL):
        items = [source[index] for index in range(start, min(start + _ROWS_PER_CALL, examples.stop))]
        captions += [item["caption"] for item in items]
        videos = np.stack([item["video"] for item in items])
        # A last call with fewer rows would compile again: fill it up and cut the result.
        padding = np.zeros((_ROWS_PER_CALL - len(items), *videos.shape[1:]), np.uint8)
        codes.append(tokenizer.encode(np.concatenate([videos, padding]))[: len(items)])
    return np.concatenate(codes), captions
