"""The whole of Loong in small: train everything, sample a minute of video, measure it, and say what came out.

Every step leaves its result in the workdir and is skipped when it is there, so a killed demo goes on where it stopped.
"""

import dataclasses
import json
import time
from pathlib import Path

import numpy as np

from loong_jax import pipeline
from loong_jax.config import DemoJob, SamplingConfig
from loong_jax.data.moving_digits import MovingDigits, canonical_caption
from loong_jax.evaluation.digits import digit_benchmark
from loong_jax.evaluation.reconstruction import codebook_usage, psnr
from loong_jax.evaluation.report import format_table, write_report
from loong_jax.sample import sample_videos, write_sample
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.training.lm_job import train_language_model
from loong_jax.training.metrics import read_metrics, say, write_result
from loong_jax.training.tokenizer_job import train_tokenizer
from loong_jax.video import contact_sheet, write_video

_STAGES = ("stage1", "stage2", "stage3")
_HELD_OUT = "held_out_prompts"


def run_demo(job: DemoJob, workdir: Path) -> dict:
    """Train the tokenizer and the three stages in ``workdir``, sample, and write ``results.json``; returns it."""
    start = time.perf_counter()
    say("1/5 video tokenizer: single frames first, then clips")
    train_tokenizer(job.image_tokenizer, workdir / "image_tokenizer")
    tokenizer = train_tokenizer(job.tokenizer, workdir / "tokenizer")
    for number, stage in enumerate(_STAGES, start=2):
        say(f"{number}/5 language model, {stage}")
        train_language_model(getattr(job, stage), workdir / stage, workdir / "tokens")
    say("5/5 sampling and measuring")
    samples = workdir / "samples"
    pipe = pipeline.load(workdir / "stage3", job.sample.mesh)
    _forget_others(job, pipe, samples)
    files = _sample(job, pipe, samples)
    results = {"tokenizer": _reconstruct(job, tokenizer, samples), "loss": _losses(job, workdir)}
    results["benchmark"] = _benchmark(job, pipe, samples)
    results["minutes"] = (time.perf_counter() - start) / 60
    write_report(workdir / "results.json", results)
    files += [samples / "reconstruction.png", samples / f"{_HELD_OUT}.png", workdir / "results.json"]
    say(_describe(results, files))
    return results


def _forget_others(job: DemoJob, pipe: pipeline.Pipeline, samples: Path) -> None:
    """Remove the samples that are of another model or of other settings, so that they are made anew."""
    settings = {
        "model": pipe.fingerprint,
        "sampling": dataclasses.asdict(_sampling(job, pipe)),
        "seeds": [job.seed, job.sample.seed],
        "num_eval_prompts": job.num_eval_prompts,
    }
    settings, known = json.loads(json.dumps(settings)), samples / "settings.json"
    if not known.exists() or json.loads(known.read_text(encoding="utf-8")) != settings:
        for file in (*_sample_files(job, samples), *samples.glob(f"{_HELD_OUT}.*")):
            file.unlink(missing_ok=True)
        write_report(known, settings)


def _sample_files(job: DemoJob, samples: Path) -> list[Path]:
    stem = job.sample.prompt.replace(" ", "_")
    return [samples / f"{stem}{extension}" for extension in (".mp4", ".gif", ".png")]


def _sample(job: DemoJob, pipe: pipeline.Pipeline, samples: Path) -> list[Path]:
    """The video that the user waited for, as mp4, gif and contact sheet."""
    files = _sample_files(job, samples)
    if not all(file.exists() for file in files):
        [video] = sample_videos(pipe, [job.sample.prompt], job.sample.seed, _sampling(job, pipe), batch_size=1)
        write_sample(files[0].with_suffix(""), video, pipe.fps)
    return files


def _sampling(job: DemoJob, pipe: pipeline.Pipeline) -> SamplingConfig:
    return job.sample.sampling.over(pipe.sampling)


def _reconstruct(job: DemoJob, tokenizer: VideoTokenizer, samples: Path) -> dict:
    """PSNR and codebook usage on held-out clips of stage 3's length, and a strip of originals over reconstructions."""
    data = job.stage3.data
    source = MovingDigits("test", data.frame_size, data.num_frames, data.two_digit_share)
    originals = np.stack([source[index]["video"] for index in range(job.num_eval_clips)])
    ids = tokenizer.encode(originals)
    decoded = tokenizer.decode(ids)
    rows = [video for pair in zip(originals[:4], decoded[:4], strict=True) for video in pair]
    write_result(samples.parent, "reconstruction", contact_sheet(rows, columns=12))
    return {
        "psnr": float(psnr(originals, decoded).mean()),
        "codebook_usage": float(codebook_usage(ids, tokenizer.config.quantizer.num_codes)),
    }


def _losses(job: DemoJob, workdir: Path) -> dict:
    """Held-out cross-entropy of the first and last latent frame at the end of each stage, in nats per id."""
    losses = {}
    for stage in _STAGES:
        record = [record for record in read_metrics(workdir / stage) if record["split"] == "eval"][-1]
        losses[stage] = {"first_frame": record["frame_loss"][0], "last_frame": record["frame_loss"][-1]}
    return losses


def _benchmark(job: DemoJob, pipe: pipeline.Pipeline, samples: Path) -> dict:
    """Shares of right digits, colors and directions in videos of held-out prompts, beside those of real clips."""
    data = job.stage3.data
    sampling = _sampling(job, pipe)
    num_frames = max(1, round(sampling.seconds * pipe.fps))
    source = MovingDigits("test", data.frame_size, num_frames, data.two_digit_share)
    examples = [source[index] for index in range(job.num_eval_prompts)]
    scenes = [example["label"] for example in examples]
    cached = samples / f"{_HELD_OUT}.npy"
    if not cached.exists():
        prompts = [canonical_caption(scene) for scene in scenes]
        videos = sample_videos(pipe, prompts, job.seed, sampling, job.batch_size)
        temporary = cached.with_suffix(".tmp.npy")
        np.save(temporary, videos)
        temporary.replace(cached)
    videos = np.load(cached, allow_pickle=False)
    if not (samples / f"{_HELD_OUT}.mp4").exists():
        write_result(samples.parent, _HELD_OUT, contact_sheet(list(videos[:12]), columns=12))
        write_video(samples / f"{_HELD_OUT}.mp4", _mosaic(videos[:16]), pipe.fps)
    seconds = min(10.0, sampling.seconds)
    return {
        "sampled": _shares(digit_benchmark(videos, scenes, pipe.fps, seconds)),
        "real": _shares(digit_benchmark(np.stack([e["video"] for e in examples]), scenes, pipe.fps, seconds)),
    }


def _shares(benchmark: dict) -> dict:
    return {name: value for name, value in benchmark.items() if name != "videos"}


def _mosaic(videos: np.ndarray) -> np.ndarray:
    """Videos [n, t, h, w, 3] side by side in a square, thin lines between them."""
    side = int(len(videos) ** 0.5)
    framed = np.pad(videos[: side**2], ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=90)
    rows = [np.concatenate(list(framed[row * side : (row + 1) * side]), axis=2) for row in range(side)]
    mosaic = np.concatenate(rows, axis=1)
    return mosaic


def _describe(results: dict, files: list[Path]) -> str:
    sampled, real = results["benchmark"]["sampled"], results["benchmark"]["real"]
    rows = [
        {"what": "reconstruction of held-out clips, PSNR", "value": f"{results['tokenizer']['psnr']:.1f} dB"},
        {"what": "codebook usage", "value": f"{results['tokenizer']['codebook_usage']:.1%}"},
    ]
    for stage, loss in results["loss"].items():
        value = f"{loss['first_frame']:.2f} / {loss['last_frame']:.2f}"
        rows.append({"what": f"{stage} held-out loss, first / last latent frame", "value": value})
    names = {
        "digit_first": "digit right, first 10 s",
        "color_first": "color right, first 10 s",
        "direction_first": "direction right, first 10 s",
        "digit_last": "digit right, last 10 s",
        "color_last": "color right, last 10 s",
    }
    for name, what in names.items():
        rows.append({"what": f"{what} (real clips)", "value": f"{sampled[name]:.0%} ({real[name]:.0%})"})
    table = format_table(rows, ("what", "value"))
    listing = "\n".join(f"  {file}" for file in files)
    return f"\n{table}\n\nFiles:\n{listing}\nDone in {results['minutes']:.1f} minutes."
