"""From a DataConfig to a random-access source of {"video", "caption", "key", "label"}."""

from pathlib import Path
from typing import Any

from loong_jax.config import DataConfig
from loong_jax.data.clips import BadMedia, Clips
from loong_jax.data.cut_list import read_cut_list
from loong_jax.data.moving_digits import MovingDigits
from loong_jax.data.video_folder import VideoFolder
from loong_jax.data.web_shards import WebShards


def make_source(
    data: DataConfig,
    split: str,
    *,
    num_frames: int | None = None,
    num_examples: int = 1_000_000,
    bad_list: Path | None = None,
) -> Any:
    """The source that ``data`` names, for ``split`` "train" or "test"; bad media are listed in ``bad_list``.

    Raises:
        ValueError: it is not there, or holds nothing that can be read.
    """
    frames = data.num_frames if num_frames is None else num_frames
    if data.source == "moving_digits":
        return MovingDigits(split, data.frame_size, frames, data.two_digit_share, num_examples)
    if data.source == "video_folder":
        return VideoFolder(
            data.path, split, data.frame_size, frames, data.fps, data.held_out_every, num_examples=num_examples
        )
    media = WebShards(data.path) if data.source == "web_shards" else read_cut_list(data.path)
    places = range(len(media))
    in_split = [place for place in places if (place % data.held_out_every == 0) == (split == "test")]
    return Clips(
        media,
        in_split or places,
        BadMedia(f"{data.source} {data.path}", data.max_bad_share, bad_list),
        frame_size=data.frame_size,
        num_frames=frames,
        fps=data.fps,
        num_examples=num_examples,
        min_brightness=data.min_brightness,
        min_motion=data.min_motion,
    )
