"""Clips cut from listed media as a random-access source."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from loong_jax.config import MediaLimits
from loong_jax.data.bad_media import BadMedia, BadMedium
from loong_jax.video_file import TooLarge, VideoFile, sample_frames

MOST_CAPTION = 2**16  # characters or bytes of a caption that are read


@dataclasses.dataclass(frozen=True)
class Medium:
    """A video or an image before it is decoded, or the part of a longer video that one caption describes."""

    key: str
    content: Path | bytes | np.ndarray  # a file, what is in one, or frames: uint8 [frames, height, width, channels]
    caption: str
    start: float = 0.0  # seconds
    stop: float | None = None
    fps: float | None = None  # of frames; None: those of the clips

    def __post_init__(self):
        # A file's name need not be UTF-8, and what names a medium is printed and stored.
        object.__setattr__(self, "key", self.key.encode("utf-8", "backslashreplace").decode())


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
        needs_caption: bool = False,
        limits: MediaLimits | None = None,
    ):
        """Describe the source; nothing is decoded yet.

        Args:
            media: what the clips are cut from; reading an entry may raise ``BadMedium``.
            places: the entries of ``media`` that belong to this split.
            bad: where bad media are counted.
            fps: frames per second of the clips, sampled by time stamps.
            min_brightness: mean pixel value, of 255, under which a clip counts as black.
            min_motion: mean change of a pixel from one frame to the next under which a clip counts as frozen.
            needs_caption: whether a medium without one is bad.
            limits: beyond which a medium is bad.
        """
        self._media, self._places, self._bad = media, places, bad
        self._frame_size, self._num_frames, self._fps = frame_size, num_frames, fps
        self._num_examples = num_examples
        self._min_brightness, self._min_motion = min_brightness, min_motion
        self._needs_caption, self._limits = needs_caption, limits

    def __len__(self) -> int:
        return self._num_examples

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self._num_examples:
            raise IndexError(f"example {index} of {self._num_examples}")
        wanted = f"a clip of {self._num_frames} frames at {self._fps:g} frames per second"

        def read(place: int, attempt: int) -> dict:
            medium = self._media[place]
            try:
                return self._cut(medium, np.random.default_rng((int(index), attempt)))
            except BadMedium as error:
                error.key = medium.key
                raise

        return self._bad.first_good(int(index), self._places, read, wanted)

    def _cut(self, medium: Medium, rng: np.random.Generator) -> dict:
        if self._needs_caption and not medium.caption:
            raise BadMedium("no caption")
        if not _is_text(medium.caption):
            raise BadMedium("caption is not UTF-8", ascii(medium.caption))
        try:
            video, offset = self._decode(medium, rng)
        except BadMedium:
            raise
        except TooLarge as error:
            raise BadMedium("too large", str(error)) from None
        except ValueError as error:
            raise BadMedium("unreadable", str(error)) from None
        if self._min_brightness and video.mean() < self._min_brightness:
            raise BadMedium("black", f"mean brightness {video.mean():.1f} of 255", is_whole=False)
        if self._min_motion and len(video) > 1:
            change = np.abs(np.diff(video.astype(np.int16), axis=0)).mean()
            if change < self._min_motion:
                raise BadMedium("frozen", f"a pixel changes by {change:.2f} of 255 a frame", is_whole=False)
        return {"video": video, "caption": medium.caption, "key": f"{medium.key}#{offset}", "label": ()}

    def _decode(self, medium: Medium, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """The clip and how many of its frames lie before it in the medium."""
        if isinstance(medium.content, np.ndarray):
            frame_rate = medium.fps or self._fps
            offset = self._choose_start(medium, len(medium.content) / frame_rate, rng)
            instants = medium.start + (offset + np.arange(self._num_frames)) / self._fps
            return sample_frames(medium.content, instants * frame_rate, self._frame_size), offset
        with VideoFile(medium.content, self._limits) as file:
            stop = file.duration if medium.stop is None else medium.stop
            offset = self._choose_start(medium, stop, rng)
            start = medium.start + offset / self._fps
            video = file.read(size=self._frame_size, fps=self._fps, start=start, num_frames=self._num_frames)
        if len(video) == self._num_frames - 1:  # the stated duration of the last frame is longer than the decoded one
            video = np.concatenate([video, video[-1:]])
        if len(video) < self._num_frames:
            found = f"only {len(video)} of {self._num_frames} frames"
            if stop is None:
                raise BadMedium("too short", found)
            raise BadMedium("truncated", f"{found} can be decoded", is_whole=False)
        return video, offset

    def _choose_start(self, medium: Medium, stop: float | None, rng: np.random.Generator) -> int:
        if stop is None:
            return 0  # an image, or damage that decoding will find
        needed = (self._num_frames - 1) / self._fps  # from the start of the first frame to that of the last
        # The last frame must start before the end; instants are rounded.
        num_starts = math.ceil((stop - medium.start - needed) * self._fps - 1e-3)
        if num_starts < 1:
            raise BadMedium("too short", f"{stop - medium.start:.2f} s, and a clip needs {needed:.2f} s")
        return int(rng.integers(num_starts))


def _is_text(caption: str) -> bool:
    """Whether it holds neither what stood for other bytes nor half a character, which JSON can hold."""
    return "\ufffd" not in caption and not any("\ud800" <= character <= "\udfff" for character in caption)
