"""What sampling leaves of a video: mp4, gif, frames and a contact sheet, written as its frames come."""

import shutil
from pathlib import Path

import numpy as np

from loong_jax.video import Video, VideoWriter, contact_sheet, write_image

_SHEET_ROWS, _SHEET_COLUMNS = 5, 12


class SampleFiles:
    """The files of one video, ``stem`` with an extension each; memory does not grow with the video.

    Where a ``with`` block fails, what was written stays, as ``VideoWriter`` says; frames in a folder ``stem``.part.
    """

    def __init__(self, stem: Path, num_frames: int, fps: float, outputs: tuple[str, ...]):
        """Prepare to write.

        Args:
            stem: path without extension.
            num_frames: frames that the video will have.
            fps: frames per second.
            outputs: some of "mp4", "gif", "mkv", "frames" (a PNG each, in a folder ``stem``) and "sheet" (stem.png).
        """
        sides = {"mp4": 256, "gif": 128, "mkv": 1}
        self._writers = [
            VideoWriter(stem.with_name(f"{stem.name}.{kind}"), fps, min_side=sides[kind])
            for kind in outputs
            if kind in sides
        ]
        self._folder = stem if "frames" in outputs else None
        self._part = stem.with_name(f"{stem.name}.part")
        self._sheet = _Sheet(stem.with_name(f"{stem.name}.png"), num_frames) if "sheet" in outputs else None
        self._count = 0

    @property
    def paths(self) -> list[Path]:
        """What there is once the video is whole."""
        paths = [writer.path for writer in self._writers]
        paths += [] if self._sheet is None else [self._sheet.path]
        return paths if self._folder is None else [*paths, self._folder]

    def __enter__(self) -> "SampleFiles":
        shutil.rmtree(self._part, ignore_errors=True)
        return self

    def __exit__(self, error: type | None, *_) -> None:
        for writer in self._writers:
            writer.close(is_whole=error is None)
        if self._sheet is not None and error is None:
            self._sheet.write()
        if self._folder is not None and error is None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._part.replace(self._folder)

    def write(self, frames: Video) -> None:
        """Append frames, uint8 [frames, height, width, 3]."""
        for writer in self._writers:
            writer.write(frames)
        for index, frame in enumerate(frames, start=self._count):
            if self._folder is not None:
                write_image(self._part / f"{index:06d}.png", frame)
            if self._sheet is not None:
                self._sheet.see(index, frame)
        self._count += len(frames)


class _Sheet:
    """Keeps the frames that a contact sheet shows, twelve a row from the beginning to the end."""

    def __init__(self, path: Path, num_frames: int):
        self.path = path
        columns = min(_SHEET_COLUMNS, num_frames)
        parts = np.array_split(np.arange(num_frames), min(_SHEET_ROWS, -(-num_frames // _SHEET_COLUMNS)))
        self._rows = [part[np.linspace(0, len(part) - 1, columns).round().astype(int)] for part in parts]
        self._shown = set(np.concatenate(self._rows).tolist())
        self._frames = {}

    def see(self, index: int, frame: np.ndarray) -> None:
        if index in self._shown:
            self._frames[index] = frame.copy()

    def write(self) -> None:
        rows = [np.stack([self._frames[index] for index in row]) for row in self._rows]
        write_image(self.path, contact_sheet(rows, columns=len(self._rows[0])))
