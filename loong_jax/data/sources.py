"""From a DataConfig to a random-access source of {"video", "caption", "key", "label"}."""

from typing import Any

from loong_jax.config import DataConfig
from loong_jax.data.moving_digits import MovingDigits
from loong_jax.data.video_folder import VideoFolder


def make_source(data: DataConfig, split: str, *, num_frames: int | None = None, num_examples: int = 1_000_000) -> Any:
    """The source that ``data`` names, for ``split`` "train" or "test"."""
    frames = data.num_frames if num_frames is None else num_frames
    if data.source == "moving_digits":
        return MovingDigits(split, data.frame_size, frames, data.two_digit_share, num_examples)
    return VideoFolder(
        data.path, split, data.frame_size, frames, data.fps, data.held_out_every, num_examples=num_examples
    )
