"""Frechet video distance (FVD, arXiv 1812.01717): how far apart two sets of videos are, as I3D sees them.

The protocol, which is the same wherever this project says FVD:

- frames: clips of 16 frames (``fvd.num_frames``), which both sets are read for at the same rate and frame size;
- stride: a clip's frames follow each other (``fvd.stride`` 1); its place is the middle of each window of the video;
- resize: frames go to 224x224 whatever their shape, bilinear, between the centers of pixels, without low-pass;
- features: the 400 logits of I3D trained on Kinetics-400, of pixels in [-1, 1];
- distance: |mean - mean'|^2 + tr(C + C' - 2 (C C')^(1/2)) in float64, with covariances of n - 1;
- count: FVD of fewer clips is larger, so figures are of equal counts, and stand beside them; 2,048 clips are usual;
- folds: the videos are dealt to disjoint folds, whose own distances say how far chance moves one of that size;
- storage: what is compared is decoded from files without loss (.mkv), as H.264 alone moves a set by much.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, UInt8

from loong_jax.evaluation.i3d import Weights, i3d_features


def frechet_distance(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """Squared Frechet distance of the normal distributions with the means and covariances of two sets of features.

    Computed in float64; 0 for equal sets.

    Raises:
        ValueError: a set has fewer than two rows, or they differ in width.
    """
    if min(len(a), len(b)) < 2 or a.shape[1:] != b.shape[1:]:
        raise ValueError(f"A distance needs sets of two or more rows of one width; got {a.shape} and {b.shape}.")
    (mean_a, root_a), (mean_b, root_b) = _moments(a), _moments(b)
    # tr (A B)^(1/2) of A = root_a' root_a and B = root_b' root_b, without squaring what is small.
    shared = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    distance = ((mean_a - mean_b) ** 2).sum() + (root_a**2).sum() + (root_b**2).sum() - 2 * shared
    return max(0.0, float(distance))


def frechet_of_folds(
    a: Sequence[Float[np.ndarray, "clips d"]], b: Sequence[Float[np.ndarray, "clips d"]], num_folds: int
) -> list[float]:
    """Distances of disjoint parts of two sets, up to ``num_folds``, but no more than leaves two clips in each.

    Each entry of a set holds the clips of one video, which stay together.

    Raises:
        ValueError: a set has fewer than two clips.
    """
    for count in range(min(num_folds, len(a), len(b)), 0, -1):
        parts = [(np.concatenate(a[fold::count]), np.concatenate(b[fold::count])) for fold in range(count)]
        if count == 1 or min(len(rows) for part in parts for rows in part) >= 2:
            return [frechet_distance(*part) for part in parts]
    raise ValueError("A distance needs two or more clips in each set; one has none.")


def clip_features(weights: Weights, clips: UInt8[np.ndarray, "n t h w 3"]) -> Float[np.ndarray, "n 400"]:
    """I3D's logits of clips, worked through one at a time, in float32."""
    return np.concatenate([np.asarray(_features(weights, clip[None])) for clip in clips])


_features = jax.jit(i3d_features)


def cut_clips(
    video: UInt8[np.ndarray, "frames h w 3"], count: int, num_frames: int, stride: int = 1
) -> UInt8[np.ndarray, "count num_frames h w 3"]:
    """The clip in the middle of each of ``count`` equal parts of a video; where parts are shorter, clips overlap.

    Raises:
        ValueError: the video is shorter than a clip.
    """
    length = (num_frames - 1) * stride + 1
    if len(video) < length:
        raise ValueError(
            f"a clip of {num_frames} frames, {stride} apart, needs {length} frames; a window has {len(video)}: make it "
            "longer (window_seconds), or the clip shorter (fvd.num_frames), or leave out the video, or FVD "
            "(measure_fvd=False)."
        )
    middles = (np.arange(count) + 0.5) * len(video) / count
    starts = np.clip(np.floor(middles - length / 2 + 1e-6).astype(int), 0, len(video) - length)
    return video[starts[:, None] + stride * np.arange(num_frames)]


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean, and R with R'R the covariance."""
    features = np.asarray(features, np.float64)
    mean = features.mean(axis=0)
    _, sizes, axes = np.linalg.svd((features - mean) / np.sqrt(len(features) - 1), full_matrices=False)
    return mean, sizes[:, None] * axes
