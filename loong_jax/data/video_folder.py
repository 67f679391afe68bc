"""A folder of video files as a random-access source, with captions from a table, from text files, or none."""

import threading
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np

from loong_jax.data.tables import read_rows
from loong_jax.video import EXTENSIONS, duration, read_video

_CAPTION_FIELDS = ("caption", "text")
_FILE_FIELDS = ("file_name", "file", "video", "path")


class VideoFolder:
    """Random access to {"video": uint8 [t, h, w, 3], "caption": str, "key": str, "label": ()}.

    Example i is a clip of file i modulo the number of files; where it starts depends on i alone. Unreadable and too
    short files are left out with one warning. Captions come from a
    ``*.jsonl`` or ``*.csv`` file in the folder (fields file_name and caption or text), else from a ``.txt`` beside each
    video, else they are empty.
    """

    def __init__(
        self,
        path: str | Path,
        split: str,
        frame_size: int,
        num_frames: int,
        fps: float,
        held_out_every: int = 10,
        *,
        num_examples: int = 1_000_000,
        cache_bytes: int = 256 * 2**20,
    ):
        """Look through the folder; videos are decoded when they are read.

        Args:
            split: "test" takes every ``held_out_every``-th file, "train" the others.
            cache_bytes: memory for decoded videos.

        Raises:
            ValueError: the folder is missing or holds no video that is long enough, or its captions are malformed.
        """
        if split not in ("train", "test"):
            raise ValueError(f"split={split!r}: video_folder has 'train' and 'test'.")
        self._root = Path(path)
        if not self._root.is_dir():
            raise ValueError(f"Video folder {path} does not exist.")
        files = sorted(file for file in self._root.rglob("*") if file.suffix.lower() in EXTENSIONS)
        if not files:
            raise ValueError(f"Video folder {path} holds no video: looked for {', '.join(EXTENSIONS)}.")
        self._captions = _read_captions(self._root, files)
        durations = {file: duration(file) for file in files}
        # The last frame of a clip starts (num_frames - 1) / fps after the first.
        needed = (num_frames - 1) / fps
        usable = [file for file, seconds in durations.items() if seconds is not None and seconds > needed]
        if not usable:
            known = [seconds for seconds in durations.values() if seconds is not None]
            unreadable, longest = len(files) - len(known), max(known, default=0.0)
            raise ValueError(
                f"Video folder {path} holds no clip of {num_frames} frames at {fps:g} frames per second "
                f"({needed:.2f} s): of {len(files)} files {unreadable} are unreadable, and the longest lasts "
                f"{longest:.2f} s. Ask for shorter clips, or give longer videos."
            )
        self.num_skipped = len(files) - len(usable)
        if self.num_skipped:
            warnings.warn(
                f"Video folder {path}: {self.num_skipped} of {len(files)} files are unreadable or shorter than a clip "
                f"of {num_frames} frames at {fps:g} frames per second, and are left out.",
                stacklevel=2,
            )
        # By place among all files, not the usable ones: a file must not change sides when clips get longer.
        in_split = {file for i, file in enumerate(files) if (i % held_out_every == 0) == (split == "test")}
        self._files = [file for file in usable if file in in_split]
        if not self._files:
            warnings.warn(
                f"Video folder {path} has no video for the {split} split: it reads those of the other.", stacklevel=2
            )
            self._files = usable
        self._frame_size, self._num_frames, self._fps = frame_size, num_frames, fps
        self._num_examples = num_examples
        self._cache: OrderedDict[Path, np.ndarray] = OrderedDict()  # least recently used first
        self._cache_bytes, self._cached_bytes = cache_bytes, 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._num_examples

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self._num_examples:
            raise IndexError(f"example {index} of {self._num_examples}")
        file = self._files[int(index) % len(self._files)]
        frames = self._decoded(file)
        room = len(frames) - self._num_frames
        if room == -1:  # the stated duration of the last frame is longer than the decoded one
            frames, room = np.concatenate([frames, frames[-1:]]), 0
        if room < 0:
            raise ValueError(
                f"Video {file} is damaged: its header promises {self._num_frames} frames at {self._fps:g} frames per "
                f"second, but only {len(frames)} can be decoded. Remove or repair it."
            )
        start = int(np.random.default_rng(int(index)).integers(room + 1))
        video = frames[start : start + self._num_frames].copy()  # the cache must survive what the caller does
        key = str(file.relative_to(self._root))
        return {"video": video, "caption": self._captions.get(file, ""), "key": f"{key}#{start}", "label": ()}

    def _decoded(self, file: Path) -> np.ndarray:
        with self._lock:
            if file in self._cache:
                self._cache.move_to_end(file)
                return self._cache[file]
        # Outside the lock, so that reader threads decode at once: a file decoded twice is a waste, never an error.
        frames = read_video(file, size=self._frame_size, fps=self._fps)
        with self._lock:
            if file not in self._cache:
                self._cache[file] = frames
                self._cached_bytes += frames.nbytes
            while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
                self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return frames


def _read_captions(root: Path, files: list[Path]) -> dict[Path, str]:
    tables = [file for file in sorted(root.iterdir()) if file.suffix in (".jsonl", ".csv")]
    if not tables:
        return {file: _text_beside(file) for file in files if file.with_suffix(".txt").is_file()}
    known = set(files)
    captions = {}
    for table in tables:
        for line, row in read_rows(table):
            name = next((row[field] for field in _FILE_FIELDS if row.get(field)), None)
            caption = next((row[field] for field in _CAPTION_FIELDS if row.get(field) is not None), None)
            if not isinstance(name, str) or not isinstance(caption, str):
                raise ValueError(f"{table}, line {line}: a row needs the texts file_name and caption; it has {row}.")
            if root / name not in known:
                raise ValueError(f"{table}, line {line}: {name} is not a video in {root}.")
            captions[root / name] = caption
    return captions


def _text_beside(file: Path) -> str:
    return file.with_suffix(".txt").read_text(encoding="utf-8", errors="replace").strip()
