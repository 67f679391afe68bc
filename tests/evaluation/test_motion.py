"""Flickering, smoothness and amount of motion: by hand, as a plain search finds them, and in the right order."""

import numpy as np
import pytest
from scipy import ndimage

from loong_jax.evaluation.motion import _match, motion_scores

FPS = 6.5


def picture(seed=0, size=96):
    """Smooth texture, without a direction of its own."""
    noise = np.random.default_rng(seed).normal(size=(size, size, 3))
    smooth = ndimage.gaussian_filter(noise, (1.5, 1.5, 0), mode="wrap")
    return np.clip(127 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def moving(step, num_frames=9, size=40, background=None):
    """The picture's middle, whose content moves by ``step`` pixels a frame."""
    whole = picture() if background is None else background
    frames = (np.roll(whole, np.multiply(frame, step), (0, 1)) for frame in range(num_frames))
    return np.stack([frame[20 : 20 + size, 20 : 20 + size] for frame in frames])


def test_a_frozen_video_is_smooth_and_does_not_move():
    scores = motion_scores(moving((0, 0)), FPS)
    assert scores == {"temporal_flickering": 1, "motion_smoothness": 1, "motion_amount": 0}


def test_even_motion_is_smooth_and_its_amount_is_known():
    scores = motion_scores(moving((1, -2)), FPS)
    assert scores["motion_amount"] == pytest.approx(5**0.5 / 40 * FPS)
    assert scores["motion_smoothness"] > 0.99 and scores["temporal_flickering"] < 0.9


def test_flickering_by_hand():
    video = np.full((4, 16, 16, 3), 100, np.uint8)
    video[1] += 51
    video[3, :, :8] -= 51
    scores = motion_scores(video, FPS)
    assert scores["temporal_flickering"] == pytest.approx(1 - (51 + 51 + 25.5) / 3 / 255)
    assert scores["motion_smoothness"] == pytest.approx(1 - 51 / 255)  # frame 1 from its neighbors; there is no fifth
    assert scores["motion_amount"] == 0


def test_uneven_motion_and_noise_are_less_smooth():
    even = moving((0, 2))
    uneven = even[[0, 0, 2, 2, 4, 4, 6, 6, 8]]
    noisy = np.clip(even + np.random.default_rng(0).normal(0, 15, even.shape), 0, 255).astype(np.uint8)
    scores = [motion_scores(video, FPS)["motion_smoothness"] for video in (even, noisy, uneven)]
    assert scores[0] > scores[1] + 0.02 and scores[0] > scores[2] + 0.02


def test_the_amount_is_what_a_part_of_the_picture_moves():
    video = moving((0, 0), size=60)
    video[:, 20:38, 10:46] = moving((0, 3), size=60, background=picture(1))[:, 20:38, 10:46]  # 18% of the frame
    assert motion_scores(video, FPS)["motion_amount"] == pytest.approx(3 / 60 * FPS)


def test_larger_frames_score_as_their_means():
    video = moving((0, 2), size=64)
    large = video.repeat(2, axis=1).repeat(2, axis=2)
    assert motion_scores(large, FPS) == pytest.approx(motion_scores(video, FPS), rel=1e-5)


def test_the_match_is_that_of_a_plain_search():
    rng = np.random.default_rng(0)
    before, after = rng.uniform(0, 255, (2, 1, 20, 24, 3)).astype(np.float32)
    middle, lengths = _match(before, after)
    reach, (height, width) = 2, before.shape[1:3]
    old, new = (np.pad(x[0], ((reach,) * 2, (reach,) * 2, (0, 0)), mode="edge").astype(float) for x in (before, after))
    costs, mixed, steps = [], [], []
    for dy, dx in sorted(np.ndindex(5, 5), key=lambda d: (d[0] - reach) ** 2 + (d[1] - reach) ** 2):
        dy, dx = dy - reach, dx - reach
        a = old[reach - dy : reach - dy + height, reach - dx : reach - dx + width]
        b = new[reach + dy : reach + dy + height, reach + dx : reach + dx + width]
        difference = np.abs(a - b).mean(-1)
        cost = np.empty((height, width))
        for y, x in np.ndindex(height, width):
            cost[y, x] = difference[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3].mean()
        costs.append(cost + 2 * np.hypot(dy, dx))
        mixed.append((a + b) / 2)
        steps.append(np.hypot(dy, dx))
    best = np.argmin(costs, axis=0)
    assert len(np.unique(best)) > 10
    np.testing.assert_allclose(lengths[0], np.array(steps)[best], rtol=1e-6)
    np.testing.assert_allclose(middle[0], np.take_along_axis(np.array(mixed), best[None, ..., None], 0)[0], rtol=1e-5)


def test_too_few_frames():
    with pytest.raises(ValueError, match="three or more frames; got 2"):
        motion_scores(np.zeros((2, 16, 16, 3), np.uint8), FPS)
