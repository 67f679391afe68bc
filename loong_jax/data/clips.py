"""Clips cut from listed media as a random-access source; what cannot be read is passed over, counted and listed."""

import collections
import dataclasses
import json
import math
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from loong_jax.video import duration, read_video

_MOST_ATTEMPTS = 20  # media that are tried for one example
_ENOUGH = 100  # examples read before the share of bad ones says anything


@dataclasses.dataclass(frozen=True)
class Medium:
    """A video or an image before it is decoded, or the part of a longer video that one caption describes."""

    key: str
    content: Path | bytes
    caption: str
    start: float = 0.0  # seconds
    stop: float | None = None


class BadMedium(ValueError):
    """A medium that cannot serve, or just one clip of it; ``reason`` is one of few, to count by."""

    def __init__(self, reason: str, detail: str = "", *, is_whole: bool = True):
        super().__init__(detail or reason)
        self.reason, self.is_whole = reason, is_whole


class BadMedia:
    """Counts and lists bad media, and stops the run when there are too many; shared by the threads that read."""

    def __init__(self, name: str, max_share: float, path: Path | None = None):
        """Start with none.

        Args:
            name: what to call the source in messages.
            max_share: of the media read so far, once these are enough to say.
            path: a JSON-lines file that gets one line for each bad medium: key, reason, detail.
        """
        self.name, self._max_share, self._path = name, max_share, path
        self._seen: set[int] = set()
        self._bad: dict[int, str] = {}  # place -> reason
        self._useless: set[int] = set()
        self._lock = threading.Lock()

    @property
    def counts(self) -> dict[str, int]:
        """How many media were bad, by reason, the most frequent first."""
        return dict(collections.Counter(self._bad.values()).most_common())

    def is_useless(self, place: int) -> bool:
        """Whether no clip of the medium at ``place`` can be read, as was found before."""
        return place in self._useless

    def saw(self, place: int, key: str = "", error: BadMedium | None = None) -> None:
        """Note that the medium at ``place`` was read, or why it was not.

        Raises:
            ValueError: the share of bad media is over the bound.
        """
        with self._lock:
            self._seen.add(place)
            if error is not None and error.is_whole:
                self._useless.add(place)
            if error is None or place in self._bad:
                return
            self._bad[place] = error.reason
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, "reason": error.reason, "detail": str(error)}) + "\n")
            bad, seen = len(self._bad), len(self._seen)
        if seen >= _ENOUGH and bad > self._max_share * seen:
            raise ValueError(
                f"{self.name}: {bad} of the {seen} examples read so far are bad ({self.summary()}), more than "
                f"data.max_bad_share {self._max_share:g} allows{self._where()}."
            )

    def summary(self) -> str:
        """The counts in words."""
        return ", ".join(f"{count} {reason}" for reason, count in self.counts.items())

    def _where(self) -> str:
        return f"; they are listed in {self._path}" if self._path is not None else ""


class Clips:
    """Random access to {"video": uint8 [t, h, w, 3], "caption": str, "key": str, "label": ()}.

    Example i is a clip of medium i modulo their number; where it starts depends on i alone. In place of a bad medium
    stands another one that i alone decides too.
    """

    def __init__(
        self,
        media: Sequence[Medium],
        places: Sequence[int],
        bad: BadMedia,
        *,
        frame_size: int,
        num_frames: int,
        fps: float,
        num_examples: int,
        min_brightness: float = 0.0,
        min_motion: float = 0.0,
    ):
        """Describe the source; nothing is decoded yet.

        Args:
            media: what the clips are cut from; reading an entry may raise ``BadMedium``.
            places: the entries of ``media`` that belong to this split.
            bad: where bad media are counted.
            fps: frames per second of the clips, sampled by time stamps.
            min_brightness: mean pixel value, of 255, under which a clip counts as black.
            min_motion: mean change of a pixel from one frame to the next under which a clip counts as frozen.
        """
        self._media, self._places, self._bad = media, places, bad
        self._frame_size, self._num_frames, self._fps = frame_size, num_frames, fps
        self._num_examples = num_examples
        self._min_brightness, self._min_motion = min_brightness, min_motion

    def __len__(self) -> int:
        return self._num_examples

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self._num_examples:
            raise IndexError(f"example {index} of {self._num_examples}")
        choice, choices = int(index) % len(self._places), np.random.default_rng(int(index))
        for attempt in range(_MOST_ATTEMPTS):
            place = self._places[choice]
            if not self._bad.is_useless(place):
                key = f"entry {place}"
                try:
                    medium = self._media[place]
                    key = medium.key
                    example = self._cut(medium, np.random.default_rng((int(index), attempt)))
                except BadMedium as error:
                    self._bad.saw(place, key, error)
                else:
                    self._bad.saw(place)
                    return example
            choice = int(choices.integers(len(self._places)))
        raise ValueError(
            f"{self._bad.name}: {_MOST_ATTEMPTS} examples in a row cannot give a clip of {self._num_frames} frames at "
            f"{self._fps:g} frames per second ({self._bad.summary()}): ask for shorter clips, or repair the data."
        )

    def _cut(self, medium: Medium, rng: np.random.Generator) -> dict:
        needed = (self._num_frames - 1) / self._fps  # from the start of the first frame to that of the last
        stop = duration(medium.content) if medium.stop is None else medium.stop
        if stop is not None:
            # The last frame must start before the end; instants are rounded.
            num_starts = math.ceil((stop - medium.start - needed) * self._fps - 1e-3)
        else:
            num_starts = 1  # an image, or damage that decoding will find
        if num_starts < 1:
            raise BadMedium("too short", f"{stop - medium.start:.2f} s, and a clip needs {needed:.2f} s")
        offset = int(rng.integers(num_starts))
        try:
            video = read_video(
                medium.content,
                size=self._frame_size,
                fps=self._fps,
                start=medium.start + offset / self._fps,
                num_frames=self._num_frames,
            )
        except ValueError as error:
            raise BadMedium("unreadable", str(error)) from None
        if len(video) == self._num_frames - 1:  # the stated duration of the last frame is longer than the decoded one
            video = np.concatenate([video, video[-1:]])
        if len(video) < self._num_frames:
            if stop is None:
                raise BadMedium("too short", f"only {len(video)} of {self._num_frames} frames")
            raise BadMedium(
                "truncated", f"only {len(video)} of {self._num_frames} frames can be decoded", is_whole=False
            )
        if video.mean() < self._min_brightness:
            raise BadMedium("black", f"mean brightness {video.mean():.1f} of 255", is_whole=False)
        if len(video) > 1 and np.abs(np.diff(video.astype(np.int16), axis=0)).mean() < self._min_motion:
            raise BadMedium("frozen", "hardly a pixel changes", is_whole=False)
        return {"video": video, "caption": medium.caption, "key": f"{medium.key}#{offset}", "label": ()}
