"""How faithful a tokenizer is: PSNR and SSIM of its reconstructions, and how much of its codebook it uses."""

import dm_pix
import jax
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

_PEAK = 255.0


def psnr(
    a: UInt8[np.ndarray, "*batch frames height width 3"], b: UInt8[np.ndarray, "*batch frames height width 3"]
) -> Float[np.ndarray, "*batch"]:
    """Peak signal-to-noise ratio of each clip, in decibels: 10 log10(255^2 / mse), with one mse over the whole clip.

    Clips that are equal have infinite PSNR.

    Raises:
        ValueError: the clips differ in shape, or are not uint8.
    """
    if a.shape != b.shape or a.ndim < 4 or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(
            f"PSNR compares uint8 videos [batch?, frames, height, width, 3] of one shape: got {a.dtype} {a.shape} and "
            f"{b.dtype} {b.shape}."
        )
    mse = np.mean((a.astype(np.float64) - b) ** 2, axis=(-4, -3, -2, -1))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(_PEAK**2 / mse)


def ssim(a: Float[Array, "b t h w 3"], b: Float[Array, "b t h w 3"]) -> Float[Array, " b"]:
    """Structural similarity (Wang et al. 2004) of each clip, the mean over its frames; 1 for equal ones.

    Pixels in [0, 1]; Gaussian window of 11 pixels, smaller for smaller frames.
    """
    frames = (video.reshape(-1, *video.shape[2:]) for video in (a, b))
    with jax.numpy_rank_promotion("allow"):
        return dm_pix.ssim(*frames, filter_size=min(11, *a.shape[2:4])).reshape(a.shape[:2]).mean(axis=1)


def codebook_usage(ids: Int[np.ndarray, "..."], num_codes: int) -> float:
    """Share of the codebook that ``ids`` uses at least once, in [0, 1].

    Raises:
        ValueError: there are no ids, or one lies outside [0, num_codes).
    """
    return float(np.mean(_counts(ids, num_codes) > 0))


def perplexity(ids: Int[np.ndarray, "..."], num_codes: int) -> float:
    """Exponential of the entropy of the ids' frequencies: ``num_codes`` when all are used alike, 1 when only one is.

    Raises:
        ValueError: there are no ids, or one lies outside [0, num_codes).
    """
    counts = _counts(ids, num_codes)
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def _counts(ids: np.ndarray, num_codes: int) -> np.ndarray:
    ids = np.asarray(ids)
    if ids.size == 0 or ids.min() < 0 or ids.max() >= num_codes:
        given = f"ids in [{ids.min()}, {ids.max()}]" if ids.size else "no ids"
        raise ValueError(f"Got {given}: a codebook of {num_codes} codes has the ids 0 to {num_codes - 1}.")
    return np.bincount(ids.reshape(-1), minlength=num_codes)
