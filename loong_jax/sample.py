"""Run a SampleJob: prompts to mp4, gif and a contact sheet."""

import re
import time
from pathlib import Path

import numpy as np

from loong_jax import pipeline
from loong_jax.config import SampleJob, SamplingConfig
from loong_jax.training.metrics import ProgressReport, say
from loong_jax.video import contact_sheet, write_image, write_video


def run_sample(job: SampleJob, workdir: Path) -> list[Path]:
    """Sample a video for every prompt of ``job`` into ``<workdir>/samples``; returns the files."""
    pipe = pipeline.load((workdir / job.model_path).resolve(), job.mesh)
    prompts = [prompt.strip() for prompt in job.prompt.split("|") if prompt.strip()]
    videos = sample_videos(pipe, prompts, job.seed, job.sampling)
    files = []
    for index, (prompt, video) in enumerate(zip(prompts, videos, strict=True)):
        name = re.sub(r"[^a-z0-9]+", "_", prompt.lower()).strip("_")[:60]
        stem = workdir / "samples" / f"{index:02d}_{name}_seed{job.seed + index}"
        files += write_sample(stem, video, pipe.fps)
    for file in files:
        say(f"wrote {file}")
    return files


def sample_videos(pipe: pipeline.Pipeline, prompts: list[str], seed: int, sampling: SamplingConfig) -> np.ndarray:
    """One video per prompt, uint8 [prompts, frames, height, width, 3], with progress on the screen."""
    total = max(1, round(sampling.seconds * pipe.fps))
    progress = ProgressReport(f"sampling {len(prompts)} x {sampling.seconds:g} s", total)
    say("compiling the sampler")
    parts, start = [], time.perf_counter()
    options = {name: getattr(sampling, name) for name in sampling.__dataclass_fields__}
    for frames in pipe.stream(prompts, seed, **options):
        parts.append(frames)
        done = sum(part.shape[1] for part in parts)
        rate = done * len(prompts) / (time.perf_counter() - start)
        progress.report(done, f"frames, {rate:.1f} frames/s")
    progress.close()
    return np.concatenate(parts, axis=1)


def write_sample(stem: Path, video: np.ndarray, fps: float) -> list[Path]:
    """Write ``stem``.mp4, .gif and a contact sheet .png of one video."""
    files = [stem.with_name(stem.name + extension) for extension in (".mp4", ".gif", ".png")]
    write_video(files[0], video, fps)
    write_video(files[1], video, fps, min_side=128)
    # Twelve frames a row, from the beginning to the end.
    rows = np.array_split(np.arange(len(video)), min(5, -(-len(video) // 12)))
    write_image(files[2], contact_sheet([video[row] for row in rows], columns=min(12, len(video))))
    return files
