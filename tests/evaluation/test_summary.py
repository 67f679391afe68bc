"""What records say together: means by hand, and distances of the right clips."""

import numpy as np
import pytest

from loong_jax.config import EvaluateJob
from loong_jax.evaluation.frechet import frechet_distance
from loong_jax.evaluation.measure import Record, split_windows
from loong_jax.evaluation.summary import distances, summarize

RNG = np.random.default_rng(0)


def record(windows, features=None, by_second=None, digits=None):
    return Record("a", "", 10.0 * len(windows), {"psnr": windows}, by_second or {}, digits or {}, features)


def test_windows_are_equal_parts_of_about_the_length_asked_for():
    video = np.zeros((390, 2, 2, 3), np.uint8)
    assert [len(part) for part in split_windows(video, 6.5, 10)] == [65] * 6
    assert [len(part) for part in split_windows(video[:100], 6.5, 10)] == [50, 50]
    assert [len(part) for part in split_windows(video[:17], 6.5, 10)] == [17]


def test_means_by_hand():
    records = [
        record([30.0, 20.0], by_second={"digit": [True, False, True]}, digits={"digit_first": True}),
        record([10.0], by_second={"digit": [False]}, digits={"digit_first": False}),
        record([20.0]),
    ]
    summary = summarize(records)
    assert summary["count"] == 3 and summary["seconds"] == pytest.approx(40 / 3)
    assert summary["metrics"] == {"psnr": 20.0, "digit_first": 0.5}
    assert summary["by_window"] == {"psnr": [20.0, 20.0]}
    assert summary["by_second"] == {"digit": [0.5, 0, 1]}


def test_distances_of_all_clips_of_windows_and_of_folds():
    job = EvaluateJob()
    features = RNG.normal(size=(6, 3, 2, 8))
    records = [record([1.0] * 3, features=part) for part in features[:5]]
    records.append(record([1.0], features=features[5, :1]))  # a video of one window
    real = [record([1.0], features=part) for part in RNG.normal(1, 2, size=(8, 1, 2, 8))]
    found = distances(records, real, job)
    ours = np.concatenate([r.features.reshape(-1, 8) for r in records])
    theirs = np.concatenate([r.features.reshape(-1, 8) for r in real])
    assert found["clips"] == [32, 16]
    assert found["metrics"]["fvd"] == pytest.approx(frechet_distance(ours, theirs))
    assert found["metrics"]["fvd_fold_mean"] > found["metrics"]["fvd"] and found["metrics"]["fvd_fold_deviation"] > 0
    windows = found["by_window"]
    assert windows["fvd"][1] == pytest.approx(frechet_distance(features[:5, 1].reshape(-1, 8), theirs))
    assert windows["fvd_from_start"][0] == pytest.approx(0, abs=1e-9)
    start = np.concatenate([r.features[0] for r in records])
    assert windows["fvd_from_start"][2] == pytest.approx(frechet_distance(features[:5, 2].reshape(-1, 8), start))


def test_without_a_reference_there_is_drift_and_without_features_nothing():
    records = [record([1.0, 1.0], features=part) for part in RNG.normal(size=(3, 2, 1, 8))]
    found = distances(records, None, EvaluateJob())
    assert found["metrics"] == {} and list(found["by_window"]) == ["fvd_from_start"] and found["clips"] == [6]
    assert distances([record([1.0])], None, EvaluateJob()) == {"metrics": {}, "by_window": {}, "clips": []}


def test_one_clip_of_a_window_has_no_distance():
    records = [record([1.0] * n, features=RNG.normal(size=(n, 1, 8))) for n in (1, 1, 2)]
    assert distances(records, None, EvaluateJob())["by_window"]["fvd_from_start"][1] is None
