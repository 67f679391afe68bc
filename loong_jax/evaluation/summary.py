"""What the records of a set of videos, and of one it is compared with, say together."""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from loong_jax.config import EvaluateJob
from loong_jax.evaluation.frechet import frechet_distance, frechet_of_folds
from loong_jax.evaluation.measure import Record

# Of each metric: what it is called, and which way is better.
METRICS = {
    "fvd": ("Frechet video distance", "lower"),
    "fvd_fold_mean": ("the same of folds, mean", "lower"),
    "fvd_fold_deviation": ("the same of folds, deviation", ""),
    "psnr": ("PSNR, dB", "higher"),
    "ssim": ("SSIM", "higher"),
    "lpips": ("LPIPS", "lower"),
    "codebook_usage": ("share of the codebook in use", "higher"),
    "codebook_perplexity": ("perplexity of the codes", "higher"),
    "clipsim": ("CLIPSIM", "higher"),
    "temporal_flickering": ("temporal flickering (1: none)", "higher"),
    "motion_smoothness": ("motion smoothness", "higher"),
    "motion_amount": ("motion, frame sides a second", ""),
    "digit_first": ("digit right, first window", "higher"),
    "color_first": ("color right, first window", "higher"),
    "direction_first": ("direction right, first window", "higher"),
    "digit_last": ("digit right, last window", "higher"),
    "color_last": ("color right, last window", "higher"),
}


def summarize(records: Sequence[Record]) -> dict[str, Any]:
    """Means over the videos of a set.

    Returns:
        "metrics": by name; "by_window" and "by_second": by name a list, each value the mean over the videos that last
        so long; "count" and "seconds": how many videos there are and how long they are on average.
    """
    metrics = {name: float(np.mean(np.concatenate(values))) for name, values in _gather(records, _windows).items()}
    shares = _gather(records, lambda record: record.digits)
    return {
        "count": len(records),
        "seconds": float(np.mean([record.seconds for record in records])),
        "metrics": metrics | {name: float(np.mean(values)) for name, values in shares.items()},
        "by_window": {name: _means(values) for name, values in _gather(records, _windows).items()},
        "by_second": {name: _means(values) for name, values in _gather(records, lambda r: r.by_second).items()},
    }


def distances(records: Sequence[Record], reference: Sequence[Record] | None, job: EvaluateJob) -> dict[str, Any]:
    """Frechet distances, of all clips, of folds, and of each window.

    Returns:
        "metrics": with a reference, "fvd" and the mean and deviation over folds; "by_window": "fvd" of each window's
        clips and all of the reference's, and "fvd_from_start" of each window's clips and those of the first; "clips":
        how many clips the distance is of, on either side.
    """
    if any(record.features is None for record in records):
        return {"metrics": {}, "by_window": {}, "clips": []}
    start = [record.features[0] for record in records]
    windows = [
        np.concatenate([record.features[index] for record in records if len(record.features) > index])
        for index in range(max(len(record.features) for record in records))
    ]
    from_start = [frechet_distance(part, np.concatenate(start)) if len(part) > 1 else None for part in windows]
    found = {"metrics": {}, "by_window": {"fvd_from_start": from_start}, "clips": [sum(map(len, windows))]}
    if reference is None:
        return found
    real = np.concatenate([part for record in reference for part in record.features])
    folds = frechet_of_folds(_by_video(records), _by_video(reference), job.fvd.num_folds)
    found["metrics"] = {
        "fvd": frechet_distance(np.concatenate(windows), real),
        "fvd_fold_mean": float(np.mean(folds)),
    }
    if len(folds) > 1:
        found["metrics"]["fvd_fold_deviation"] = float(np.std(folds, ddof=1))
    found["by_window"]["fvd"] = [frechet_distance(part, real) if len(part) > 1 else None for part in windows]
    found["clips"].append(len(real))
    return found


def _windows(record: Record) -> dict[str, list[float]]:
    return record.windows


def _gather(records: Sequence[Record], part: Callable[[Record], dict]) -> dict[str, list]:
    """By metric, the values of the records that have it."""
    gathered = collections.defaultdict(list)
    for record in records:
        for name, value in part(record).items():
            gathered[name].append(value)
    return dict(gathered)


def _means(lists: Sequence[Sequence[float]]) -> list[float]:
    """The mean at each place, over the lists that are long enough."""
    return [float(np.mean([values[i] for values in lists if len(values) > i])) for i in range(max(map(len, lists)))]


def _by_video(records: Sequence[Record]) -> list[np.ndarray]:
    """The features of each video, [clips, 400]."""
    return [record.features.reshape(-1, record.features.shape[-1]) for record in records]
