"""Every metric of every video of a set, in each window of its time."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float
from rich.progress import track

from loong_jax.config import EvaluateJob
from loong_jax.evaluation.clipsim import Clip
from loong_jax.evaluation.digits import digit_benchmark, digits_by_window
from loong_jax.evaluation.frechet import clip_features, cut_clips
from loong_jax.evaluation.i3d import Weights, load_i3d
from loong_jax.evaluation.motion import motion_scores
from loong_jax.evaluation.reconstruction import psnr, ssim
from loong_jax.evaluation.video_sets import Example, VideoSet
from loong_jax.tokenizer.perceptual import LpipsWeights, load_weights, lpips
from loong_jax.video import Video

_MOST_PSNR = 100.0  # dB, of equal frames


@dataclasses.dataclass(frozen=True)
class Judges:
    """The networks that look at videos; None where they are not asked for."""

    i3d: Weights | None
    lpips: LpipsWeights | None
    clip: Clip | None


def load_judges(job: EvaluateJob) -> Judges:
    """The networks that ``job`` needs.

    Raises:
        ValueError: the weights of one are not there.
    """
    return Judges(
        i3d=load_i3d() if job.measure_fvd else None,
        lpips=load_weights(job.lpips_weights, "lpips_weights") if job.measure_lpips else None,
        clip=Clip(job.clip_path) if job.clip_path else None,
    )


@dataclasses.dataclass(frozen=True)
class Record:
    """What was measured of one video."""

    name: str
    prompt: str
    seconds: float
    windows: dict[str, list[float]]  # by metric: a value for each window
    by_second: dict[str, list[bool]]  # digits alone: whether each is right in each second
    digits: dict[str, bool]  # the digit benchmark's verdicts of the first and the last window
    features: Float[np.ndarray, "windows clips 400"] | None


def measure(videos: VideoSet, judges: Judges, job: EvaluateJob, title: str) -> list[Record]:
    """Measure each video of a set, with progress on the screen.

    Raises:
        ValueError: a video cannot be read, or is too short for a clip of ``job.fvd``.
    """
    return [_measure_one(example, judges, job) for example in track(videos, title, total=len(videos))]


def split_windows(video: Video, fps: float, seconds: float) -> list[Video]:
    """Equal parts of a video, in whole frames, of about ``seconds`` each."""
    return np.array_split(video, max(1, round(len(video) / fps / seconds)))


def _measure_one(example: Example, judges: Judges, job: EvaluateJob) -> Record:
    fps = job.data.fps
    windows = split_windows(example.video, fps, job.window_seconds)
    originals = [None] * len(windows)
    if example.original is not None:
        originals = split_windows(example.original, fps, job.window_seconds)
    scores = [
        _scores(part, original, example.prompt, judges) for part, original in zip(windows, originals, strict=True)
    ]
    if min(map(len, windows)) >= 3:
        scores = [score | motion_scores(part, fps) for score, part in zip(scores, windows, strict=True)]
    by_second, digits = {}, {}
    if example.scenes:
        by_second = digits_by_window(example.video, example.scenes, fps)
        verdicts = digit_benchmark(example.video[None], [example.scenes], fps, job.window_seconds)["videos"][0]
        digits = {name: verdict for name, verdict in verdicts.items() if name != "scenes"}
    return Record(
        name=example.name,
        prompt=example.prompt,
        seconds=len(example.video) / fps,
        windows={name: [score[name] for score in scores] for name in scores[0]},
        by_second=by_second,
        digits=digits,
        features=None if judges.i3d is None else _features(example.name, windows, judges.i3d, job),
    )


def _scores(video: Video, original: Video | None, prompt: str, judges: Judges) -> dict[str, float]:
    scores = {}
    if judges.clip is not None and prompt:
        scores["clipsim"] = judges.clip.similarity(video, prompt)
    if original is not None:
        likeness = jax.device_get(_likeness(video, original, judges.lpips))
        scores |= {name: float(value) for name, value in likeness.items()}
        scores["psnr"] = min(float(psnr(video, original)), _MOST_PSNR)
    return scores


@jax.jit
def _likeness(video, original, weights):
    video, original = (x.astype(np.float32) / 255 for x in (video, original))
    scores = {"ssim": ssim(video[None], original[None])[0]}
    if weights is not None:
        scores["lpips"] = lpips(weights, 2 * video - 1, 2 * original - 1).mean()
    return scores


def _features(
    name: str, windows: Sequence[Video], weights: Weights, job: EvaluateJob
) -> Float[np.ndarray, "windows clips 400"]:
    cut = job.fvd
    try:
        clips = [cut_clips(part, cut.clips_per_window, cut.num_frames, cut.stride) for part in windows]
    except ValueError as error:
        raise ValueError(f"Video {name}: {error}") from None
    return np.stack([clip_features(weights, part) for part in clips])
