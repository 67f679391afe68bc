"""Videos and pictures on disk, through PyAV. Videos are uint8 [frames, height, width, 3], RGB."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

Video = UInt8[np.ndarray, "t h w 3"]
Image = UInt8[np.ndarray, "h w 3"]

# Encoder, its kind of pixels, and its options.
_CODECS = {
    ".mp4": ("libx264", "yuv420p", {"crf": "16"}),
    ".gif": ("gif", "pal8", {}),
    ".mkv": ("ffv1", "bgr0", {}),
}


class VideoWriter:
    """A video that is written as its frames come, in constant memory.

    An .mp4 (H.264) plays everywhere, a .gif has a palette of its own for every frame, and an .mkv (FFV1) keeps every
    pixel as it is. The first two enlarge small videos by whole factors. Until it is closed the file is called
    ``NAME.part.EXTENSION``, and where a ``with`` block fails it stays so: a shorter video that plays.
    """

    def __init__(self, path: str | Path, fps: float = 6.5, *, min_side: int = 256):
        """Prepare to write; missing folders are made with the first frames.

        Args:
            path: ends in .mp4, .gif or .mkv.
            fps: frames per second.
            min_side: pixels are repeated until the shorter side has at least this many; not of .mkv.

        Raises:
            ValueError: another file type, or no possible rate.
        """
        self.path = Path(path)
        if self.path.suffix not in _CODECS:
            raise ValueError(f"Cannot write {self.path}: the name must end in .mp4, .gif or .mkv.")
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
        kind = self.path.suffix
        factor = 1 if kind == ".mkv" else -(-self._min_side // min(height, width))
        if kind == ".mp4" and any(side * factor % 2 for side in (height, width)):
            factor *= 2  # H.264 with 4:2:0 color has even sides
        self._size, self._factor, self._count = (height, width), factor, 0
        self._palette = _palette(height * factor, width * factor, self._rate) if kind == ".gif" else None
        self._part.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._part), "w")
        codec, pixels, options = _CODECS[kind]
        self._stream = self._container.add_stream(codec, rate=self._rate, options=options)
        self._stream.pix_fmt = pixels
        self._stream.height, self._stream.width = height * factor, width * factor


def write_video(path: str | Path, video: Video, fps: float = 6.5, *, min_side: int = 256) -> None:
    """Write uint8 [frames, height, width, 3] to a file; arguments and errors are those of ``VideoWriter``."""
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
    content = encode_png(image)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def encode_png(image: Image) -> bytes:
    """The content of a PNG file; errors are those of ``write_image``."""
    frame = np.ascontiguousarray(_check_video(np.asarray(image)[None])[0])
    encoder = av.CodecContext.create("png", "w")
    encoder.height, encoder.width = frame.shape[:2]
    encoder.pix_fmt = "rgb24"
    encoder.time_base = Fraction(1)
    packets = encoder.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")) + encoder.encode(None)
    return b"".join(bytes(packet) for packet in packets)


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


def write_strip(stem: str | Path, originals: np.ndarray, decoded: np.ndarray, fps: float, *, columns: int = 8) -> Image:
    """Write videos over their reconstructions: ``stem``.png with some frames and, if they move, ``stem``.mp4.

    Returns the picture.

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
    picture = contact_sheet(rows, columns=columns)
    write_image(stem.with_suffix(".png"), picture)
    return picture


def _check_video(video: np.ndarray) -> np.ndarray:
    video = np.asarray(video)
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise ValueError(
            f"A video must be uint8 [frames, height, width, 3] and not empty; got {video.dtype} {video.shape}."
        )
    return video
