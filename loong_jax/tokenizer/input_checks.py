"""What a tokenizer takes: anything that can only mean one video or one array of ids, else one clear error."""

from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from loong_jax.config import TokenizerConfig


def check_video(
    config: TokenizerConfig, video: Any, *, pad: bool = True
) -> tuple[UInt8[np.ndarray, "b t h w 3"], bool]:
    """A batch of uint8 RGB videos, and whether it was given as a batch; ``VideoTokenizer.encode`` says what is taken.

    Args:
        config: of the tokenizer.
        video: what the user gave.
        pad: repeat the last frame up to 1 + a multiple of the temporal factor.

    Raises:
        ValueError: it is not a video that the tokenizer can take.
    """
    video = _to_array(video, "A video")
    is_number = video.dtype == np.uint8 or np.issubdtype(video.dtype, np.floating)
    if not is_number or video.ndim not in (4, 5) or video.shape[-1] not in (1, 3, 4) or 0 in video.shape:
        raise ValueError(
            "A video must be [batch?, frames, height, width, channels] with 1, 3 or 4 channels, uint8 or float, and "
            f"not empty; got {video.dtype} {video.shape}."
        )
    height, width = video.shape[-3:-1]
    if height % config.spatial_factor or width % config.spatial_factor:
        raise ValueError(
            f"Height and width must be multiples of {config.spatial_factor}; got {height}x{width}: "
            "resize the video (read_video takes size=...)."
        )
    if video.dtype != np.uint8:
        video = _from_float(video)
    if video.shape[-1] == 1:
        video = video.repeat(3, axis=-1)
    elif video.shape[-1] == 4:
        alpha = video[..., 3:].astype(np.float32) / 255
        video = np.round(video[..., :3] * alpha).astype(np.uint8)
    batch = video if video.ndim == 5 else video[None]
    missing = -(batch.shape[1] - 1) % config.temporal_factor
    if pad and missing:
        batch = np.concatenate([batch, batch[:, -1:].repeat(missing, axis=1)], axis=1)
    return batch, video.ndim == 5


def check_ids(config: TokenizerConfig, ids: Any) -> tuple[Int[np.ndarray, "b t h w"], bool]:
    """A batch of int32 ids, and whether it was given as a batch.

    Raises:
        ValueError: they are not ids that the tokenizer makes.
    """
    ids = _to_array(ids, "Ids")
    if not np.issubdtype(ids.dtype, np.integer) or ids.ndim not in (3, 4) or 0 in ids.shape:
        raise ValueError(
            f"Ids must be integers [batch?, latent_frames, h, w] and not empty; got {ids.dtype} {ids.shape}."
        )
    num_codes = config.quantizer.num_codes
    if ids.min() < 0 or ids.max() >= num_codes:
        raise ValueError(f"Ids must lie in [0, {num_codes}); got {ids.min()} to {ids.max()}.")
    ids = ids.astype(np.int32)
    return (ids, True) if ids.ndim == 4 else (ids[None], False)


def _to_array(value: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} must be one array; what was given is not ({error}).") from None


def _from_float(video: np.ndarray) -> np.ndarray:
    lowest, highest = video.min(), video.max()  # not a number, if one of them is not
    if not (lowest >= 0 and highest <= 1):
        raise ValueError(f"A float video has values in [0, 1]; got {lowest:g} to {highest:g}: scale it, or give uint8.")
    return np.round(video * 255).astype(np.uint8)
