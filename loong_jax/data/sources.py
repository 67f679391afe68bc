"""From the name of a source to random access to {"video", "caption", "key", "label"}."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grain

from loong_jax.config import DataConfig, SourceName, parse_sources
from loong_jax.data.bad_media import BadMedia
from loong_jax.data.clips import Clips, Medium
from loong_jax.data.cut_list import CutList
from loong_jax.data.folder import read_folder
from loong_jax.data.moving_digits import MovingDigits
from loong_jax.data.web_shards import WebShards
from loong_jax.video_file import IMAGE_EXTENSIONS


def make_source(
    data: DataConfig,
    split: str,
    *,
    source: str = "",
    num_frames: int | None = None,
    num_examples: int = 1_000_000,
    needs_caption: bool = False,
    bad_list: Path | None = None,
) -> Any:
    """A source of clips, for ``split`` "train" or "test".

    Args:
        data: the settings.
        source: its name in place of ``data.source``; see ``config.sources``.
        num_frames: in place of ``data.num_frames``.
        num_examples: that the source gives; the clips of a medium differ. 0: one of each medium.
        needs_caption: whether media without one are passed over.
        bad_list: a file for the list of media that are passed over.

    Raises:
        ValueError: it is not there, or holds nothing that can be read.
    """
    frames = num_frames or data.num_frames
    names = parse_sources("data.source", source or data.source)

    def make(name: SourceName) -> Any:
        if name.kind == "moving_digits":
            if not num_examples:
                raise ValueError("moving_digits have no number of their own: set data.num_clips and data.num_images.")
            return MovingDigits(split, data.frame_size, frames, data.two_digit_share, num_examples)
        media, places = open_media(name, data, split)
        if frames > 1:
            places = _moving(media, places)
        return Clips(
            media,
            places,
            BadMedia(str(name), data.max_bad_share, bad_list),
            frame_size=data.frame_size,
            num_frames=frames,
            fps=data.fps,
            num_examples=num_examples or len(places),
            min_brightness=data.min_brightness,
            min_motion=data.min_motion,
            needs_caption=needs_caption,
            limits=data.limits,
        )

    made = [make(name) for name in names]
    return mixed(made, [name.weight for name in names], num_examples or sum(map(len, made)))


def check_there(data: DataConfig) -> None:
    """Raise ValueError where a folder or file that ``data`` names is missing; nothing is read."""
    for field in ("source", "image_source"):
        for name in parse_sources(f"data.{field}", getattr(data, field)) if getattr(data, field) else ():
            if name.kind in ("folder", "web_shards", "cut_list", "tokens") and not Path(name.where).exists():
                raise ValueError(
                    f"data.{field}: there is no {name.where} for {name}; name what there is, relative to the folder "
                    "the command runs in."
                )


def open_media(name: SourceName, data: DataConfig, split: str) -> tuple[Sequence[Medium], Sequence[int]]:
    """The media of a source, and which of them belong to ``split``.

    Raises:
        ValueError: it is not there, or is empty.
    """
    has_splits = False
    match name.kind:
        case "folder":
            media = read_folder(name.where)
        case "web_shards":
            media = WebShards(name.where, data.limits)
        case "cut_list":
            media = CutList(name.where)
        case "tfds":
            from loong_jax.data.tfds_clips import TfdsClips  # takes a while to import

            media = TfdsClips(name.where, split)
            has_splits = media.has_own_test
        case _:
            raise ValueError(f"A source of pixels is needed, and {name.kind!r} holds none.")
    places = range(len(media))
    if has_splits:
        return media, places
    # By place among all, so that none changes sides when clips get longer.
    every = data.held_out_every
    in_split = places[::every] if split == "test" else _AllBut(len(media), every)
    if not len(in_split):
        warnings.warn(f"{name} has but one medium: it serves both splits.", stacklevel=2)
        in_split = places
    return media, in_split


class _AllBut(Sequence):
    """0, 1, ... without the multiples of ``every``: a list of a hundred million would take gigabytes."""

    def __init__(self, stop: int, every: int):
        self._every, self._length = every, stop - -(-stop // every)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self._length:
            raise IndexError(index)
        return 1 + index + index // (self._every - 1)


def _moving(media: Sequence[Medium], places: Sequence[int]) -> Sequence[int]:
    """The places that are not of image files, where names tell."""
    if not isinstance(media, list):
        return places
    moving = [place for place in places if not media[place].key.lower().endswith(IMAGE_EXTENSIONS)]
    if not moving:
        raise ValueError("There are images alone, and a clip of several frames needs videos.")
    return moving


def mixed(sources: Sequence[Any], weights: Sequence[float], num_examples: int) -> Any:
    """One source of several, each giving its weight's share of any stretch of examples."""
    return sources[0] if len(sources) == 1 else _Mixture(sources, weights, num_examples)


class _Mixture:
    """Example i is of a source that i alone decides."""

    def __init__(self, sources: Sequence[Any], weights: Sequence[float], num_examples: int):
        endless = [grain.MapDataset.source(source).repeat() for source in sources]
        self._examples, self._num_examples = grain.MapDataset.mix(endless, weights), num_examples

    def __len__(self) -> int:
        return self._num_examples

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self._num_examples:
            raise IndexError(f"example {index} of {self._num_examples}")
        return self._examples[int(index)]
