"""Time and memory for each second of a long video, and what can be seen where its rounds join.

    python tests/benchmarks/long_video.py                              # the demo's model, untrained; minutes on a CPU
    python tests/benchmarks/long_video.py --model=runs/demo/stage3     # a trained one, whose seams mean something

First videos of 10, 60 and 600 s in turn, each length in a process of its own. Then, for every
``sampling.continuation``, how much a latent frame's first frame differs from the one before it where a round begins and
elsewhere, and the PSNR of the frames that a round starts from, as it decodes them, to those that were shown. At last
the time of one video with several ids at once (``sampling.decoding.parallel_ids``), in turn with one after another.
"""

import argparse
import contextlib
import dataclasses
import multiprocessing
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax
import numpy as np

import loong_jax
from loong_jax.config import SamplingConfig
from loong_jax.config_dict import load_job
from loong_jax.evaluation.reconstruction import psnr
from loong_jax.models import transformer
from loong_jax.sampling.rounds import plan_rounds
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer

DEMO = load_job(Path(__file__).parents[2] / "configs", "demo")
PROMPTS = [f"a {color} {digit} moves left" for digit, color in enumerate(("red", "blue", "green", "red"), start=2)]
LENGTHS = {10: 6, 60: 2, 600: 1}  # seconds, and how often in a round
WAYS = ("reencode", "anchor", "ids", "window")
PARALLEL_IDS, ROUNDS = (1, 4, 8, 16), 5


def load(path: str) -> loong_jax.Pipeline:
    """The model in ``path``, or the demo's with random weights."""
    if path:
        return loong_jax.load(path)
    job = DEMO.stage3
    params = transformer.init_params(job.model, jax.random.key(0))
    return loong_jax.Pipeline(job, params, VideoTokenizer.untrained(DEMO.tokenizer.tokenizer))


def options(**changed) -> dict:
    return dataclasses.asdict(dataclasses.replace(DEMO.stage3.sampling, **changed))


def start(path: str) -> None:
    """Load and compile, in a process that measures one length."""
    global _pipe
    _pipe = load(path)
    list(_pipe.stream(PROMPTS[0], **options(seconds=20.0)))


def measure(seconds: float) -> tuple[float, float, float, float]:
    """Seconds on the clock and of the processor for each second of video, to the first frame, and MiB so far."""
    clock, processor = time.perf_counter(), time.process_time()
    stream = _pipe.stream(PROMPTS[0], **options(seconds=seconds))
    count = len(next(stream))
    first = time.perf_counter() - clock
    count += sum(len(frames) for frames in stream)
    assert count == round(seconds * _pipe.fps)
    times = (time.perf_counter() - clock) / seconds, (time.process_time() - processor) / seconds
    return *times, first, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def lengths(path: str) -> None:
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        processes = {
            seconds: stack.enter_context(ProcessPoolExecutor(1, context, start, (path,))) for seconds in LENGTHS
        }
        runs = {seconds: [] for seconds in LENGTHS}
        for _ in range(ROUNDS):
            for seconds, times in LENGTHS.items():
                runs[seconds] += [processes[seconds].submit(measure, seconds).result() for _ in range(times)]
    base = None
    for seconds, found in runs.items():
        clock, processor, first = np.median(found, axis=0)[:3]
        memory = max(run[3] for run in found)
        base = base or (clock, processor, memory)
        print(
            f"{seconds} s: {clock:.3f} s for each second of video ({clock / base[0] - 1:+.1%}), "
            f"{processor:.3f} s of the processor ({processor / base[1] - 1:+.1%}), first frame after {first:.3f} s, "
            f"{memory:.0f} MiB at most ({memory / base[2] - 1:+.1%})",
            flush=True,
        )


def seams(pipe: loong_jax.Pipeline, seconds: float) -> None:
    tokenizer = pipe.generator.tokenizer
    for way in WAYS:
        sampling = SamplingConfig(**options(seconds=seconds, continuation=way))
        videos = pipe(PROMPTS, **options(seconds=seconds, continuation=way)).astype(np.float32)
        starts, latents = [], 0
        for part in plan_rounds(sampling, tokenizer.config, pipe.generator.grid.frames, videos.shape[1]):
            starts.append(tokenizer.config.pixel_frames(latents) if latents else 0)
            latents += part.num_new
        change = np.abs(np.diff(videos, axis=1)).mean(axis=(0, 2, 3, 4))  # [t] between t and t + 1
        borders = np.array(starts[1:]) - 1
        # Frames of one latent frame differ less than those of two.
        inside = np.setdiff1d(np.arange(0, len(change), tokenizer.config.temporal_factor), borders)
        overlaps = []
        for start in starts[1:] if way in ("reencode", "anchor") else []:
            kept = videos[:, start - sampling.reencode_frames : start].astype(np.uint8)
            if way == "anchor":
                kept[:, 0] = videos[:, 0]
            overlaps.append(psnr(kept, tokenizer.decode(tokenizer.encode(kept))).mean())
        overlap = f"{statistics.mean(overlaps):.1f} dB" if overlaps else "the same frames"
        joint, usual = change[borders].mean(), change[inside].mean()
        print(
            f"{way}: change to the next latent frame {joint:.2f} where a round begins, {usual:.2f} elsewhere "
            f"({joint / usual:.2f}); overlap {overlap}",
            flush=True,
        )


def ids_at_once(pipe: loong_jax.Pipeline) -> None:
    def run(count: int) -> tuple[float, float, np.ndarray]:
        clock, processor = time.perf_counter(), time.process_time()
        video = pipe(PROMPTS[0], **options(seconds=20.0, decoding={"parallel_ids": count}))
        return (time.perf_counter() - clock) / 20, (time.process_time() - processor) / 20, video

    expected, times = run(1)[2], {count: [] for count in PARALLEL_IDS}
    for count in PARALLEL_IDS:  # compiles
        same = (run(count)[2] == expected).all(axis=(1, 2, 3)).mean()
        print(f"{count} ids at once: {same:.0%} of the frames are those of one after another", flush=True)
    for _ in range(ROUNDS):
        for count in PARALLEL_IDS:
            times[count].append(run(count)[:2])
    base = np.median(times[1], axis=0)
    for count in PARALLEL_IDS:
        clock, processor = np.median(times[count], axis=0)
        print(
            f"{count} ids at once: {clock:.3f} s for each second of video ({base[0] / clock:.2f} times as fast), "
            f"{processor:.3f} s of the processor ({base[1] / processor:.2f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="workdir of a language-model training")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the videos whose seams are measured")
    arguments = parser.parse_args()
    print(jax.devices()[0].device_kind)
    lengths(arguments.model)
    pipe = load(arguments.model)
    seams(pipe, arguments.seconds)
    ids_at_once(pipe)


if __name__ == "__main__":
    main()
