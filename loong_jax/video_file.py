"""Reading videos and pictures, through PyAV: by time stamps, and no more than ``MediaLimits`` allow."""

import functools
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from loong_jax.config import MediaLimits
from loong_jax.video import Image, Video

EXTENSIONS = (".mp4", ".avi", ".gif", ".mov", ".mkv", ".webm")
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# Whatever a file is called, it is none of those that have others opened: playlists, lists of files, patterns of names.
_FORMATS = "mov,matroska,avi,gif,apng,mpegts,mpeg,flv,asf,ogg,ivf,mjpeg,png_pipe,jpeg_pipe,webp,webp_pipe,bmp_pipe"
# Files round time stamps: to 10 ms in gif, to 1 ms in mkv. No instant falls between two frames because of that.
_ROUNDING = 0.006
_SEEK_FROM = 2.0  # seconds; what comes sooner is decoded from the beginning


class TooLarge(ValueError):
    """A medium asks for more work or memory than ``MediaLimits`` allow."""


class _Budget:
    """What reading once from a file may cost."""

    def __init__(self, name: str, limits: MediaLimits):
        self._name, self._limits = name, limits
        self._start, self._left = monotonic(), limits.max_mib * 2**20

    def decoded(self, timed: Iterator[tuple[float, av.VideoFrame]]) -> Iterator[tuple[float, av.VideoFrame]]:
        """The same frames, as long as they are few enough."""
        for count, frame in enumerate(timed):
            self._require(count < self._limits.max_frames, f"max_frames {self._limits.max_frames:,}")
            self._require_time()
            yield frame

    def kept(self, to_array: Callable[[av.VideoFrame], Image]) -> Callable[[av.VideoFrame], Image]:
        """The same function, as long as its results are small enough."""

        def kept(frame: av.VideoFrame) -> Image:
            pixels = to_array(frame)
            self._left -= pixels.nbytes
            self._require(self._left >= 0, f"max_mib {self._limits.max_mib:,}")
            self._require_time()
            return pixels

        return kept

    def _require_time(self) -> None:
        seconds = self._limits.max_seconds
        self._require(monotonic() - self._start < seconds, f"max_seconds {seconds:g}")

    def _require(self, condition: bool, limit: str) -> None:
        if not condition:
            raise TooLarge(f"{self._name} needs more than data.limits.{limit}: read less of it, or raise that.")


class VideoFile:
    """A video or image file, or its content in memory, open for reading."""

    def __init__(self, content: str | Path | bytes, limits: MediaLimits | None = None, what: str = "Video"):
        """Open it; messages call it ``what``.

        Raises:
            ValueError: it is missing, cannot be opened, or has no video.
        """
        self._limits = limits or MediaLimits()
        self.name = f"A video of {len(content)} bytes" if isinstance(content, bytes) else f"{what} {content}"
        if not isinstance(content, bytes) and not Path(content).is_file():
            raise ValueError(f"{self.name} does not exist.")
        self._content, self._container = content, None
        self._rewind()

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; frames can no longer be read."""
        self._container.close()

    @property
    def duration(self) -> float | None:
        """Seconds that the picture lasts; None where the file does not say, as an image's."""
        stream = self._container.streams.video[0]
        tick = stream.time_base
        if stream.duration is not None and tick:
            return float(stream.duration * tick)
        try:
            # mkv and webm state only the whole file's duration, and the sound may go on after the picture.
            shown = [(p.pts, p.pts + (p.duration or 0)) for p in self._container.demux(stream) if p.pts is not None]
        except av.FFmpegError:
            shown = []
        self._rewind()
        if not shown or not tick:
            return None
        return float((max(end for _, end in shown) - min(start for start, _ in shown)) * tick)

    @property
    def fps(self) -> float | None:
        """Frames per second on average, as the file says."""
        rate = self._container.streams.video[0].average_rate
        return float(rate) if rate and self.duration is not None else None

    @property
    def codec(self) -> str:
        """How the picture is stored, e.g. "h264"."""
        return self._container.streams.video[0].codec_context.name

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        stream = self._container.streams.video[0]
        return stream.width, stream.height

    def read(
        self,
        *,
        size: int | None = None,
        fps: float | None = None,
        start: float = 0.0,
        num_frames: int | None = None,
    ) -> Video:
        """Read frames; for the arguments and errors see ``read_video``."""
        for name, value in (("size", size), ("fps", fps), ("num_frames", num_frames)):
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value!r} is not possible: it must be greater than 0, or None.")
        width, height = self.size
        if width * height > self._limits.max_pixels:
            limit = f"data.limits.max_pixels {self._limits.max_pixels:,}"
            raise TooLarge(f"{self.name} has frames of {width}x{height}, more than {limit}: raise that if it is right.")
        budget = _Budget(self.name, self._limits)
        try:
            timed = budget.decoded(self._frames_from(start))
            frames = _sample(timed, budget.kept(_converter(size, self._limits.max_pixels)), fps, start, num_frames)
        except av.error.ArgumentError:
            said = f"damaged, or of more than data.limits.max_pixels {self._limits.max_pixels:,}"
            raise ValueError(f"{self.name} cannot be decoded: a frame is {said}.") from None
        except (av.FFmpegError, StopIteration, IndexError, OverflowError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.name} cannot be decoded: {error}.") from None
        if not frames:
            raise ValueError(f"{self.name} has no frame at or after {start:g} s.")
        return np.stack(frames)

    def _rewind(self) -> None:
        """Open again: not every kind of file can seek to its start."""
        if self._container is not None:
            self._container.close()
        content, pixels = self._content, {"max_pixels": str(self._limits.max_pixels)}
        file = io.BytesIO(content) if isinstance(content, bytes) else str(content)
        try:
            self._container = av.open(file, options={"format_whitelist": _FORMATS} | pixels)
        except (av.FFmpegError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.name} cannot be decoded: {error}.") from None
        if not self._container.streams.video:
            self._container.close()
            raise ValueError(f"{self.name} has no video stream.")
        stream = self._container.streams.video[0]
        if stream.codec_context is None:
            self._container.close()
            raise ValueError(f"{self.name} cannot be decoded: there is no decoder of its kind.")
        stream.thread_type, stream.codec_context.options = "AUTO", pixels
        self._is_fresh = True

    def _frames_from(self, start: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """Frames with their seconds since the first, from one not later than ``start`` on."""
        if start > _SEEK_FROM:
            frames = self._decoded(start)
            first = next(frames, None)
            if first is not None and first[0] <= start - _ROUNDING:
                return itertools.chain([first], frames)
        return self._decoded(0.0)

    def _decoded(self, seek_to: float) -> Iterator[tuple[float, av.VideoFrame]]:
        if not self._is_fresh:
            self._rewind()
        self._is_fresh = False
        return _timed_frames(self._container, self._container.streams.video[0], seek_to)


def read_video(
    path: str | Path | bytes,
    *,
    size: int | None = None,
    fps: float | None = None,
    start: float = 0.0,
    num_frames: int | None = None,
    limits: MediaLimits | None = None,
) -> Video:
    """Read a video file.

    Args:
        path: the file, or its content.
        size: crop the middle square and resize it to ``size`` x ``size`` pixels; None keeps the frames as they are.
        fps: frames per second to sample at, by time stamps (the newest frame not later than each instant); None keeps
            every frame.
        start: seconds to skip.
        num_frames: at most this many frames.
        limits: of the work and memory that this may take; ``MediaLimits()`` by default.

    Raises:
        ValueError: the file is missing, cannot be decoded, has no video, asks for more than ``limits``, or ends before
            ``start``; or a number that must be positive is not.
    """
    with VideoFile(path, limits) as file:
        return file.read(size=size, fps=fps, start=start, num_frames=num_frames)


def _timed_frames(container, stream, start: float = 0.0) -> Iterator[tuple[float, av.VideoFrame]]:
    """Frames with their seconds since the first, from the beginning or from a key frame before ``start`` on."""
    origin = None
    if start and stream.time_base:
        origin = float((stream.start_time or 0) * stream.time_base)
        container.seek(int((origin + start) / stream.time_base), stream=stream)
    for frame in container.decode(stream):
        time = frame.time if frame.time is not None else 0.0
        origin = time if origin is None else origin
        yield time - origin, frame


def _sample(timed, to_array, fps, start, num_frames) -> list[np.ndarray]:
    frames: list[np.ndarray] = []
    limit = num_frames if num_frames is not None else float("inf")
    previous, begin, end = None, 0.0, 0.0
    for time, frame in timed:
        if fps is None:
            if time >= start - _ROUNDING:
                frames.append(to_array(frame))
        else:
            # The instants before this frame show the one before it.
            shown_until = time - _ROUNDING
            while previous is not None and len(frames) < limit and start + len(frames) / fps < shown_until:
                frames.append(to_array(previous))
            previous, begin = frame, time
        if len(frames) >= limit:
            return frames
    if previous is not None:
        # The last frame is shown until it ends; its start and its duration are both rounded.
        end = begin + max(float((previous.duration or 0) * previous.time_base) - 2 * _ROUNDING, _ROUNDING)
    while previous is not None and len(frames) < limit and start + len(frames) / fps < end:
        frames.append(to_array(previous))
    return frames


def sample_frames(frames: np.ndarray, at: np.ndarray, size: int) -> Video:
    """The frames of an array that are shown at places ``at`` (1.9 shows frame 1), cropped and resized.

    Args:
        frames: uint8 [frames, height, width, channels] with one (gray) or three channels.
        at: places in [0, frames).
        size: pixels of a side.

    Raises:
        ValueError: the array is not such.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] not in (1, 3) or 0 in frames.shape:
        raise ValueError(f"Frames must be uint8 [frames, height, width, 1 or 3]; got {frames.dtype} {frames.shape}.")
    chosen = frames[np.minimum(np.floor(at + 1e-3).astype(int), len(frames) - 1)]
    chosen = np.ascontiguousarray(chosen.repeat(3 // chosen.shape[-1], axis=-1))
    to_array = _converter(size, MediaLimits().max_pixels)
    return np.stack([to_array(av.VideoFrame.from_ndarray(frame, format="rgb24")) for frame in chosen])


def _converter(size: int | None, max_pixels: int) -> Callable[[av.VideoFrame], Image]:
    """From a frame to its pixels, of the middle square in ``size`` x ``size`` or of all as it is."""
    # Kept from frame to frame, as making its tables takes long; threads would take longer than the work.
    convert = functools.partial(VideoReformatter().reformat, format="rgb24", threads=1)

    def to_array(frame: av.VideoFrame) -> Image:
        if size is None:
            return convert(frame).to_ndarray()
        # Scale first, so that the shorter side is ``size``; then cut the middle.
        scale = size / min(frame.width, frame.height)
        width, height = (max(size, round(side * scale)) for side in (frame.width, frame.height))
        if width * height > max_pixels:  # a strip of one pixel's height
            limit = f"data.limits.max_pixels {max_pixels:,}"
            raise TooLarge(f"A frame of {frame.width}x{frame.height} scaled to {width}x{height} has more than {limit}.")
        pixels = convert(frame, width, height, interpolation="AREA").to_ndarray()
        top, left = (height - size) // 2, (width - size) // 2
        return pixels[top : top + size, left : left + size]

    return to_array
