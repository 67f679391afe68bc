"""Run a SampleJob: prompts to video files, a batch of prompts at a time."""

import contextlib
import datetime
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from loong_jax import pipeline
from loong_jax.config import SampleJob, SamplingConfig
from loong_jax.data.prompts import read_prompts
from loong_jax.sample_files import SampleFiles
from loong_jax.training.metrics import ProgressReport, say
from loong_jax.video_file import VideoFile

_REPORT_EVERY = 5.0  # seconds
_LONGEST_NAME = 60


def run_sample(job: SampleJob, workdir: Path) -> list[Path]:
    """Sample a video for every prompt of ``job`` into ``<workdir>/samples``; returns the files.

    Files are written as frames come. Where a prompt fails, the videos of the batches before it are whole.

    Raises:
        ValueError: prompts, the model, or what to start from cannot be read.
    """
    prompts = read_prompts(job.prompt, job.prompts_file)
    pipe = pipeline.load((workdir / job.model_path).resolve(), job.mesh)
    start = _read_start(job, pipe)
    num_frames = pipe.num_frames(job.sampling)
    done = []
    for first in range(0, len(prompts), job.batch_size):
        batch = prompts[first : first + job.batch_size]
        stems = [_stem(workdir, first + index, prompt, job.seed) for index, prompt in enumerate(batch)]
        outputs = tuple(job.outputs.split("|"))
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(SampleFiles(stem, num_frames, pipe.fps, outputs)) for stem in stems]
            for frames in _stream(pipe, batch, job.seed + first, job.sampling, **start):
                for file, new in zip(files, frames, strict=True):
                    file.write(new)
        for path in [path for file in files for path in file.paths]:
            say(f"wrote {path}")
            done.append(path)
    return done


def sample_videos(pipe: pipeline.Pipeline, prompts: list[str], seed: int, sampling: SamplingConfig) -> np.ndarray:
    """One video per prompt, uint8 [prompts, frames, height, width, 3], with progress on the screen."""
    return np.concatenate(list(_stream(pipe, prompts, seed, sampling)), axis=1)


def write_sample(stem: Path, video: np.ndarray, fps: float) -> list[Path]:
    """Write ``stem``.mp4, .gif and a contact sheet .png of one video."""
    with SampleFiles(stem, len(video), fps, ("mp4", "gif", "sheet")) as files:
        files.write(video)
    return files.paths


def _stream(
    pipe: pipeline.Pipeline, prompts: list[str], seed: int, sampling: SamplingConfig, **start
) -> Iterator[np.ndarray]:
    """The pipeline's frames, with progress on the screen."""
    total = pipe.num_frames(sampling)
    progress = ProgressReport(f"sampling {len(prompts)} x {sampling.seconds:g} s", total)
    say("compiling the sampler")
    options = {name: getattr(sampling, name) for name in sampling.__dataclass_fields__}
    done, first, begin, reported = 0, 0, time.perf_counter(), 0.0
    for frames in pipe.stream(prompts, seed, **start, **options):
        yield frames
        done, now = done + frames.shape[1], time.perf_counter()
        if not first:  # what comes before it is mostly compilation
            first, begin = done, now
        elif now - reported > _REPORT_EVERY or done >= total:
            rate, reported = (done - first) / (now - begin), now
            ids = rate * len(prompts) * pipe.ids_per_frame
            left = datetime.timedelta(seconds=round((total - done) / rate))
            progress.report(done, f"frames, {rate * len(prompts):.1f} frames/s, {ids:,.0f} ids/s, {left} left")
    progress.close()


def _read_start(job: SampleJob, pipe: pipeline.Pipeline) -> dict[str, np.ndarray]:
    """The image or the end of the video that all prompts start from, in the model's size and rate."""
    if job.image:
        with VideoFile(job.image) as file:
            return {"image": file.read(size=pipe.frame_size, num_frames=1)[0]}
    if job.video:
        with VideoFile(job.video) as file:
            begin = (file.duration or 0.0) - (job.sampling.reencode_frames + 1) / pipe.fps
            return {"video": file.read(size=pipe.frame_size, fps=pipe.fps, start=max(0.0, begin))}
    return {}


def _stem(workdir: Path, index: int, prompt: str, seed: int) -> Path:
    name = re.sub(r"[^a-z0-9]+", "_", prompt.lower()).strip("_")[:_LONGEST_NAME] or "video"
    return workdir / "samples" / f"{index:02d}_{name}_seed{seed + index}"
