"""From the name of a source to random access to {"video", "caption", "key", "label"}."""

import itertools
import math
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

_MANY = 1_000_000  # examples of a source of which no number is asked for


def make_source(
    data: DataConfig,
    split: str,
    *,
    source: str = "",
    num_frames: int | None = None,
    num_examples: int | None = None,
    needs_caption: bool = False,
    bad_list: Path | None = None,
) -> Any:
    """A source of clips, for ``split`` "train" or "test".

    Args:
        data: the settings.
        source: its name in place of ``data.source``; see ``config.sources``.
        num_frames: in place of ``data.num_frames``.
        num_examples: that the source gives; the clips of a medium differ. None: a million, or one of each medium where
            there are more. 0: one of each medium; of several sources as many as it takes until each has given all of
            its own, so that some give theirs several times.
        needs_caption: whether media without one are passed over.
        bad_list: a file for the list of media that are passed over.

    Raises:
        ValueError: it is not there, or holds nothing that can be read.
    """
    frames = num_frames or data.num_frames
    names = parse_sources("data.source", source or data.source)

    def make(name: SourceName) -> Any:
        if name.kind == "moving_digits":
            if num_examples == 0:
                raise ValueError("moving_digits have no number of their own: set data.num_clips and data.num_images.")
            return MovingDigits(split, data.frame_size, frames, data.two_digit_share, num_examples or _MANY)
        media, places = open_media(name, data, split, is_moving=frames > 1)
        return Clips(
            media,
            places,
            BadMedia(str(name), data.max_bad_share, bad_list),
            frame_size=data.frame_size,
            num_frames=frames,
            fps=data.fps,
            num_examples=num_examples or max(len(places), 0 if num_examples == 0 else _MANY),
            min_brightness=data.min_brightness,
            min_motion=data.min_motion,
            needs_caption=needs_caption,
            limits=data.limits,
        )

    return mixed([make(name) for name in names], [name.weight for name in names], num_examples or 0)


def check_there(data: DataConfig) -> None:
    """Raise ValueError where a folder or file that ``data`` names is missing; nothing is read."""
    for field in ("source", "image_source"):
        for name in parse_sources(f"data.{field}", getattr(data, field)) if getattr(data, field) else ():
            if name.kind in ("folder", "web_shards", "cut_list", "tokens") and not Path(name.where).exists():
                raise ValueError(
                    f"data.{field}: there is no {name.where} for {name}; name what there is, relative to the folder "
                    "the command runs in."
                )


def open_media(
    name: SourceName, data: DataConfig, split: str, is_moving: bool = False
) -> tuple[Sequence[Medium], Sequence[int]]:
    """The media of a source, and which of them belong to ``split``; with ``is_moving`` no image files.

    Raises:
        ValueError: it is not there, or is empty, or has images alone where videos are needed.
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
    kinds = _by_kind(media)
    if is_moving:
        kinds = kinds[:1]
        if not len(kinds[0]):
            raise ValueError(f"{name} has images alone, and a clip of several frames needs videos.")
    if has_splits:
        return media, kinds[0]
    # By place among those of its kind, so that none changes sides when clips get longer.
    every = data.held_out_every
    in_split = [places[::every] if split == "test" else _AllBut(places, every) for places in kinds]
    if not any(map(len, in_split)):
        warnings.warn(f"{name} has but one medium: it serves both splits.", stacklevel=2)
        in_split = kinds
    return media, in_split[0] if len(in_split) == 1 else sorted(itertools.chain(*in_split))


def _by_kind(media: Sequence[Medium]) -> list[Sequence[int]]:
    """The places of videos and, where names tell, those of image files."""
    if not isinstance(media, list):
        return [range(len(media))]
    is_image = [medium.key.lower().endswith(IMAGE_EXTENSIONS) for medium in media]
    return [[place for place, found in enumerate(is_image) if found == wanted] for wanted in (False, True)]


class _AllBut(Sequence):
    """``places`` without each ``every``-th, the first among them: a list of a hundred million would take gigabytes."""

    def __init__(self, places: Sequence[int], every: int):
        self._places, self._every = places, every
        self._length = len(places) - -(-len(places) // every)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self._length:
            raise IndexError(index)
        return self._places[1 + index + index // (self._every - 1)]


def mixed(sources: Sequence[Any], weights: Sequence[float], num_examples: int = 0) -> Any:
    """One source of several, each giving its weight's share of any stretch of examples.

    Of 0 examples it has as many as it takes until each source has given all of its own.
    """
    if len(sources) == 1:
        return sources[0]
    whole = max(math.ceil(len(source) * sum(weights) / weight) for source, weight in zip(sources, weights, strict=True))
    return _Mixture(sources, weights, num_examples or whole)


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
