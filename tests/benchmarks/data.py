"""Clips per second from video files and from token shards, against what bare decoding allows in the same run.

    python tests/benchmarks/data.py DIR              # a folder of videos
    python tests/benchmarks/data.py DIR --workers 2  # read by processes

Prints medians of rounds taken in turn: clips of 17 frames from DIR through the training's own pipeline at 128 pixels;
the frames of the same clips decoded by PyAV alone, with the same number of threads; full-size clips from token shards;
and what a batch from shards costs beside a training step of configs/stage2.py:debug.
"""

import argparse
import dataclasses
import itertools
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
from absl import flags

from loong_jax.config import DataConfig, LossConfig
from loong_jax.config_dict import load_job
from loong_jax.data.lm_batches import language_model_batches
from loong_jax.data.loader import video_batches
from loong_jax.data.sequences import static_length
from loong_jax.data.sources import make_source
from loong_jax.data.token_cache import CacheMeta, TokenCache, TokenCacheWriter, TokenExample
from loong_jax.training.lm_job import train_language_model
from loong_jax.training.metrics import read_metrics
from loong_jax.vocab import Vocabulary

ROUNDS, BATCH, NUM_BATCHES = 5, 8, 10


def raw_pipeline(data: DataConfig) -> float:
    """Clips per second of the tokenizer training's batches."""
    batches = video_batches(make_source(data, "train", num_examples=10_000), data, batch_size=BATCH, seed=0).iterate()
    next(batches)  # starts the readers
    start = time.perf_counter()
    for _ in range(NUM_BATCHES):
        next(batches)
    return NUM_BATCHES * BATCH / (time.perf_counter() - start)


def bare_decode(data: DataConfig) -> float:
    """Clips per second when the frames from each clip's first to its last are decoded, and nothing else."""
    folder = Path(data.source.removeprefix("folder:"))
    source = make_source(data, "train", num_examples=10_000)
    keys = [source[index]["key"].split("#") for index in range(NUM_BATCHES * BATCH)]

    def decode(key) -> int:
        name, offset = key
        first, last = int(offset) / data.fps, (int(offset) + data.num_frames - 1) / data.fps
        with av.open(str(folder / name)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if first > 2:
                container.seek(int(first / stream.time_base), stream=stream)
            return sum(1 for _ in itertools.takewhile(lambda frame: frame.time <= last, container.decode(stream)))

    with ThreadPoolExecutor(max(data.num_threads, data.num_workers)) as threads:
        list(threads.map(decode, keys[:BATCH]))
        start = time.perf_counter()
        list(threads.map(decode, keys))
        return len(keys) / (time.perf_counter() - start)


def shards(path: Path, count: int, grid: tuple[int, int, int], num_codes: int, num_text_ids: int) -> TokenCache:
    """Shards of random ids."""
    meta = CacheMeta("x", "y", {}, count, grid, num_codes, 6.5)
    writer, rng = TokenCacheWriter(path, meta), np.random.default_rng(0)
    for shard, places in writer.missing_shards():
        codes = rng.integers(0, num_codes, (len(places), *grid))
        writer.write(shard, [TokenExample(row, list(range(num_text_ids)), "") for row in codes])
    return TokenCache(path)


def cached_pipeline(cache: TokenCache, data: DataConfig) -> float:
    """Clips per second of the language model's batches."""
    batches = language_model_batches(
        cache,
        None,
        data,
        LossConfig(),
        Vocabulary(),
        latent_frames=5,
        length=static_length(1280, data.max_text_ids),
        batch_size=64,
        seed=0,
    ).iterate()
    next(batches)
    start = time.perf_counter()
    for _ in range(20):
        next(batches)
    return 20 * 64 / (time.perf_counter() - start)


def share_of_a_step(work: Path) -> tuple[float, float]:
    """Milliseconds of one core's work for a batch from shards, and of the clock for a step of stage2:debug."""
    job = load_job(Path(__file__).parents[2] / "configs", "stage2:debug")
    train = dataclasses.replace(job.train, num_steps=40, log_every=10, checkpoint_every=40, eval_every=40)
    train_language_model(dataclasses.replace(job, train=train, init_from=""), work / "stage2")
    rates = [record["steps_per_second"] for record in read_metrics(work / "stage2") if "steps_per_second" in record]

    frames, size = job.tokenizer.latent_frames(job.data.num_frames), job.tokenizer.latent_size(job.data.frame_size)
    cache = shards(work / "small", 4096, (frames, size, size), job.model.num_video_ids, 10)
    batches = language_model_batches(
        cache,
        cache,
        job.data,
        job.loss,
        Vocabulary(job.model.num_text_ids, job.model.num_video_ids),
        latent_frames=frames,
        length=static_length(frames * size**2, job.data.max_text_ids, job.data.pack),
        batch_size=train.batch_size,
        seed=0,
    )
    times = []
    for step in range(101):
        start = time.perf_counter()
        batches[step]
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3, 1e3 / statistics.median(rates[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a folder of videos")
    parser.add_argument("--workers", type=int, default=0, help="processes that read, in place of two threads")
    arguments = parser.parse_args()
    flags.FLAGS.mark_as_parsed()
    threads = 1 if arguments.workers else 2
    data = DataConfig(source=f"folder:{arguments.folder}", num_threads=threads, num_workers=arguments.workers)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        cache = shards(work / "large", 2048, (5, 16, 16), 8192, 20)
        rounds = [(raw_pipeline(data), bare_decode(data), cached_pipeline(cache, data)) for _ in range(ROUNDS)]
        raw, bare, cached = (statistics.median(values) for values in zip(*rounds, strict=True))
        share = statistics.median(row[0] / row[1] for row in rounds)
        print(f"from video files      {raw:8.1f} clips/s, {share:.2f} of bare decoding ({bare:.1f} clips/s)")
        print(f"from token shards     {cached:8.1f} clips/s, {cached / raw:.0f} times that from video files")
        batch, step = share_of_a_step(work)
        capacity = step * os.cpu_count()
        print(
            f"a batch from shards   {batch:8.2f} ms of a core, {batch / capacity:.2%} of a step of stage2:debug "
            f"({step:.0f} ms of {os.cpu_count()} cores)"
        )


if __name__ == "__main__":
    main()
