"""Videos and pictures on disk, through PyAV. Videos are uint8 [frames, height, width, 3], RGB."""

import functools
import io
import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

Video = UInt8[np.ndarray, "t h w 3"]
Image = UInt8[np.ndarray, "h w 3"]
# Files round time stamps: to 10 ms in gif, to 1 ms in mkv. No instant falls between two frames because of that.
_ROUNDING = 0.006
EXTENSIONS = (".mp4", ".avi", ".gif", ".mov", ".mkv", ".webm")
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_SEEK_FROM = 2.0  # seconds; what comes sooner is decoded from the beginning


class VideoFile:
    """A video or image file, or its content in memory, open for reading."""

    def __init__(self, content: str | Path | bytes):
        """Open it.

        Raises:
            ValueError: it is missing, cannot be opened, or has no video.
        """
        self.name = f"A video of {len(content)} bytes" if isinstance(content, bytes) else f"Video {content}"
        if not isinstance(content, bytes) and not Path(content).is_file():
            raise ValueError(f"{self.name} does not exist.")
        self._content, self._container = content, None
        self._rewind()

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    @property
    def duration(self) -> float | None:
        """Seconds that the picture lasts; None where the file does not say, as an image's."""
        stream = self._container.streams.video[0]
        tick = stream.time_base
        if stream.duration is not None:
            return float(stream.duration * tick)
        try:
            # mkv and webm state only the whole file's duration, and the sound may go on after the picture.
            shown = [(p.pts, p.pts + (p.duration or 0)) for p in self._container.demux(stream) if p.pts is not None]
        except av.FFmpegError:
            shown = []
        self._rewind()
        return float((max(end for _, end in shown) - min(start for start, _ in shown)) * tick) if shown else None

    @property
    def fps(self) -> float | None:
        """Frames per second on average, as the file says."""
        rate = self._container.streams.video[0].average_rate
        return float(rate) if rate and self.duration is not None else None

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
        try:
            frames = _sample(self._frames_from(start), size, fps, start, num_frames)
        except (av.FFmpegError, StopIteration, IndexError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.name} cannot be decoded: {error}.") from None
        if not frames:
            raise ValueError(f"{self.name} has no frame at or after {start:g} s.")
        return np.stack(frames)

    def _rewind(self) -> None:
        """Open again: not every kind of file can seek to its start."""
        if self._container is not None:
            self._container.close()
        content = self._content
        try:
            self._container = av.open(io.BytesIO(content) if isinstance(content, bytes) else str(content))
        except (av.FFmpegError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.name} cannot be decoded: {error}.") from None
        if not self._container.streams.video:
            self._container.close()
            raise ValueError(f"{self.name} has no video stream.")
        self._container.streams.video[0].thread_type = "AUTO"
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
) -> Video:
    """Read a video file.

    Args:
        path: the file, or its content.
        size: crop the middle square and resize it to ``size`` x ``size`` pixels; None keeps the frames as they are.
        fps: frames per second to sample at, by time stamps (the newest frame not later than each instant); None keeps
            every frame.
        start: seconds to skip.
        num_frames: at most this many frames.

    Raises:
        ValueError: the file is missing, cannot be decoded, has no video, or ends before ``start``; or a number that
            must be positive is not.
    """
    with VideoFile(path) as file:
        return file.read(size=size, fps=fps, start=start, num_frames=num_frames)


def _timed_frames(container, stream, start: float = 0.0) -> Iterator[tuple[float, av.VideoFrame]]:
    """Frames with their seconds since the first, from the beginning or from a key frame before ``start`` on."""
    origin = None
    if start:
        origin = float((stream.start_time or 0) * stream.time_base)
        container.seek(int((origin + start) / stream.time_base), stream=stream)
    for frame in container.decode(stream):
        time = frame.time if frame.time is not None else 0.0
        origin = time if origin is None else origin
        yield time - origin, frame


def _sample(timed, size, fps, start, num_frames) -> list[np.ndarray]:
    frames: list[np.ndarray] = []
    to_array = _converter(size)
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
    to_array = _converter(size)
    return np.stack([to_array(av.VideoFrame.from_ndarray(frame, format="rgb24")) for frame in chosen])


def _converter(size: int | None) -> Callable[[av.VideoFrame], Image]:
    """From a frame to its pixels, of the middle square in ``size`` x ``size`` or of all as it is."""
    # Kept from frame to frame, as making its tables takes long; threads would take longer than the work.
    convert = functools.partial(VideoReformatter().reformat, format="rgb24", threads=1)

    def to_array(frame: av.VideoFrame) -> Image:
        if size is None:
            return convert(frame).to_ndarray()
        # Scale first, so that the shorter side is ``size``; then cut the middle.
        scale = size / min(frame.width, frame.height)
        width, height = (max(size, round(side * scale)) for side in (frame.width, frame.height))
        pixels = convert(frame, width, height, interpolation="AREA").to_ndarray()
        top, left = (height - size) // 2, (width - size) // 2
        return pixels[top : top + size, left : left + size]

    return to_array


class VideoWriter:
    """An .mp4 (H.264, plays everywhere) or .gif that is written as its frames come, in constant memory.

    Small videos are enlarged by whole factors. Until it is closed the file is called ``NAME.part.EXTENSION``, and where
    a ``with`` block fails it stays so: a shorter video that plays. A .gif has a palette of its own for every frame.
    """

    def __init__(self, path: str | Path, fps: float = 6.5, *, min_side: int = 256):
        """Prepare to write; missing folders are made with the first frames.

        Args:
            path: ends in .mp4 or .gif.
            fps: frames per second.
            min_side: pixels are repeated until the shorter side has at least this many.

        Raises:
            ValueError: another file type, or no possible rate.
        """
        self.path = Path(path)
        if self.path.suffix not in (".mp4", ".gif"):
            raise ValueError(f"Cannot write {self.path}: the name must end in .mp4 or .gif.")
        if not 0 < fps < float("inf"):
            raise ValueError(f"fps={fps!r} is not possible: it must be greater than 0.")
        self._part = self.path.with_name(f"{self.path.stem}.part{self.path.suffix}")
        self._rate = Fraction(fps).limit_denominator(1000)
        self._min_side = min_side
        self._container = None

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, error: type | None, *_) -> None:
        self.close(is_whole=error is None)

    def write(self, frames: Video) -> None:
        """Append frames.

        Raises:
            ValueError: they are not uint8 [frames, height, width, 3], or of another size than those before.
        """
        frames = _check_video(frames)
        if self._container is None:
            self._open(*frames.shape[1:3])
        if frames.shape[1:3] != self._size:
            raise ValueError(f"Frames of {self.path} have {self._size} pixels; got {frames.shape[1:3]}.")
        for pixels in frames:
            pixels = pixels.repeat(self._factor, axis=0).repeat(self._factor, axis=1)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = self._count, 1 / self._rate
            self._count += 1
            frame = frame if self._palette is None else self._palette(frame)
            self._container.mux(self._stream.encode(frame))

    def close(self, is_whole: bool = True) -> None:
        """Finish the file and, where it is whole, give it its name. Without frames there is no file."""
        if self._container is None:
            return
        self._container.mux(self._stream.encode())
        self._container.close()
        self._container = None
        if is_whole:
            self._part.replace(self.path)

    def _open(self, height: int, width: int) -> None:
        is_mp4 = self.path.suffix == ".mp4"
        factor = -(-self._min_side // min(height, width))
        if is_mp4 and any(side * factor % 2 for side in (height, width)):
            factor *= 2  # H.264 with 4:2:0 color has even sides
        self._size, self._factor, self._count = (height, width), factor, 0
        self._palette = None if is_mp4 else _palette(height * factor, width * factor, self._rate)
        self._part.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._part), "w")
        options = {"crf": "16"} if is_mp4 else {}
        self._stream = self._container.add_stream("libx264" if is_mp4 else "gif", rate=self._rate, options=options)
        self._stream.pix_fmt = "yuv420p" if is_mp4 else "pal8"
        self._stream.height, self._stream.width = height * factor, width * factor


def write_video(path: str | Path, video: Video, fps: float = 6.5, *, min_side: int = 256) -> None:
    """Write uint8 [frames, height, width, 3] to an .mp4 or .gif; arguments and errors are those of ``VideoWriter``."""
    with VideoWriter(path, fps, min_side=min_side) as writer:
        writer.write(video)


def _palette(height: int, width: int, rate: Fraction) -> Callable[[av.VideoFrame], av.VideoFrame]:
    """Reduce a frame to its best 256 colors, without dithering: flat areas stay flat."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format="rgb24", time_base=1 / rate)
    split, make, use = (
        graph.add("split"),
        graph.add("palettegen", "stats_mode=single"),
        graph.add("paletteuse", "dither=none:new=1"),
    )
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(make, 1, 0)
    make.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()

    def reduce(frame: av.VideoFrame) -> av.VideoFrame:
        graph.push(frame)
        return graph.pull()

    return reduce


def write_image(path: str | Path, image: Image) -> None:
    """Write a PNG; missing folders are made.

    Raises:
        ValueError: ``image`` is not uint8 [height, width, 3].
    """
    frame = np.ascontiguousarray(_check_video(np.asarray(image)[None])[0])
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    encoder = av.CodecContext.create("png", "w")
    encoder.height, encoder.width = frame.shape[:2]
    encoder.pix_fmt = "rgb24"
    encoder.time_base = Fraction(1)
    packets = encoder.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")) + encoder.encode(None)
    path.write_bytes(b"".join(bytes(packet) for packet in packets))


def contact_sheet(videos: list[Video], columns: int = 10, *, min_side: int = 64) -> Image:
    """One picture of several videos: a row each, ``columns`` frames evenly spaced in time, white lines between."""
    rows = []
    for video in videos:
        video = _check_video(video)
        chosen = video[np.linspace(0, len(video) - 1, columns).round().astype(int)]
        factor = -(-min_side // min(video.shape[1:3]))
        chosen = chosen.repeat(factor, axis=1).repeat(factor, axis=2)
        framed = np.pad(chosen, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
        rows.append(np.concatenate(list(framed), axis=1))
    return np.concatenate(rows, axis=0)


def write_strip(stem: str | Path, originals: np.ndarray, decoded: np.ndarray, fps: float, *, columns: int = 8) -> None:
    """Write videos over their reconstructions: ``stem``.png with some frames and, if they move, ``stem``.mp4.

    Args:
        stem: path without extension.
        originals: uint8 [videos, frames, height, width, 3]; single frames are put side by side.
        decoded: the same of the reconstructions.
        fps: frames per second of the mp4.
        columns: frames of each video in the picture.
    """
    stem = Path(stem)
    if originals.shape[1] == 1:
        rows, columns = [originals[:, 0], decoded[:, 0]], len(originals)
    else:
        rows = [video for pair in zip(originals, decoded, strict=True) for video in pair]
        columns = min(columns, originals.shape[1])
        both = np.stack([originals, decoded])
        # Videos side by side, each over its reconstruction.
        write_video(stem.with_suffix(".mp4"), np.concatenate(list(np.concatenate(list(both), axis=2)), axis=2), fps=fps)
    write_image(stem.with_suffix(".png"), contact_sheet(rows, columns=columns))


def _check_video(video: np.ndarray) -> np.ndarray:
    video = np.asarray(video)
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise ValueError(
            f"A video must be uint8 [frames, height, width, 3] and not empty; got {video.dtype} {video.shape}."
        )
    return video
