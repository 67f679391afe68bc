"""Ids of a video on disk, as they come: from them alone sampling goes on, and the video is made.

The first line of a file is JSON, what the video was sampled from; then the frames that it began with, uint8
[t, height, width, 3]; then its latent frames, each int32 [h, w], little-endian. A latent frame that a kill cut short
does not count.
"""

import dataclasses
import itertools
import json
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from loong_jax.appending import append_whole
from loong_jax.config import SamplingConfig
from loong_jax.config_dict import build
from loong_jax.vocab import LatentGrid

_FORMAT = 1
_LONGEST_LINE = 2**20


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a video was sampled from: the same gives the same ids."""

    model: str  # fingerprints
    tokenizer: str
    script: tuple[tuple[float, str], ...]  # from which second on it shows what
    seed: int
    sampling: SamplingConfig
    fps: float
    frame_size: int
    clip: LatentGrid  # of the model


class SavedIds:
    """The ids of one video, in a file that grows by one latent frame at a time."""

    def __init__(self, path: str | Path):
        """Open a file of saved ids.

        Raises:
            ValueError: it is missing, or no such file.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{path} does not exist: give a file of ids, as sampling leaves it beside a video.")
        with self.path.open("rb") as file:
            line = file.readline(_LONGEST_LINE)
            try:
                values = json.loads(line)
                is_known = values.pop("format") == _FORMAT
                num_start = values.pop("num_start")
                values["sampling"] = build(SamplingConfig, values["sampling"], "sampling")
                values["clip"] = LatentGrid(**values["clip"])
                values["script"] = tuple((second, text) for second, text in values["script"])
                self.origin, clip, size = Origin(**values), values["clip"], values["frame_size"]
                is_known &= num_start >= 0 and min(size, clip.frames, clip.height, clip.width) > 0
                start = np.frombuffer(file.read(num_start * size * size * 3), np.uint8).reshape(-1, size, size, 3)
                is_known &= len(start) == num_start
            except (ValueError, KeyError, TypeError, AttributeError):
                is_known = False
            if not is_known:
                raise ValueError(f"{path} is no file of ids, or of another version: sample the video again.")
            self._header = file.tell()
        self.start = start if num_start else None
        self._record = 4 * self.origin.clip.ids_per_frame

    @staticmethod
    def create(path: str | Path, origin: Origin, start: UInt8[np.ndarray, "t h w 3"] | None) -> "SavedIds":
        """The file at ``path`` where it is of the same video, else a new one in its place.

        The new one begins with the ids of a video that is the same and shorter. Ids of another video may be hours of
        work: their file is renamed to NAME.1.ids, or the next free number, and a warning says so.
        """
        path = Path(path)
        line = json.dumps(
            {"format": _FORMAT, "num_start": 0 if start is None else len(start)} | dataclasses.asdict(origin)
        )
        content = line.encode() + b"\n" + (b"" if start is None else start.tobytes())
        if not path.is_file() or not path.read_bytes().startswith(content):
            path.parent.mkdir(parents=True, exist_ok=True)
            ids = _ids_of_shorter(path, origin, start)
            if not ids:
                _set_aside(path)
            partial = path.with_suffix(".partial")
            partial.write_bytes(content + ids)
            partial.replace(path)
        return SavedIds(path)

    def __len__(self) -> int:
        """Whole latent frames in the file."""
        return (self.path.stat().st_size - self._header) // self._record

    def read(self) -> Int[np.ndarray, "n h w"]:
        """All whole latent frames."""
        ids = np.fromfile(self.path, "<i4", len(self) * self.origin.clip.ids_per_frame, offset=self._header)
        return ids.astype(np.int32).reshape(-1, self.origin.clip.height, self.origin.clip.width)

    def keep(self, count: int) -> None:
        """Forget what comes after the first ``count`` latent frames."""
        with self.path.open("r+b") as file:
            file.truncate(self._header + count * self._record)

    def append(self, ids: Int[np.ndarray, "h w"]) -> None:
        """Write one latent frame, at once, or nothing; after a kill, ``keep`` what is whole first."""
        append_whole(self.path, np.ascontiguousarray(ids, "<i4").tobytes())


def _ids_of_shorter(path: Path, origin: Origin, start: np.ndarray | None) -> bytes:
    """Ids in the file at ``path`` with which a video begins: those of the same one, which was to end earlier."""
    try:
        saved = SavedIds(path)
    except ValueError:
        return b""
    is_shorter = saved.origin.sampling.seconds <= origin.sampling.seconds
    if not is_shorter or _endless(saved.origin) != _endless(origin) or not np.array_equal(saved.start, start):
        return b""
    return saved.read().astype("<i4").tobytes()


def _endless(origin: Origin) -> Origin:
    """An origin without what changes no id: how long the video is, and how many ids are guessed at once."""
    decoding = dataclasses.replace(origin.sampling.decoding, parallel_ids=1)
    return dataclasses.replace(origin, sampling=dataclasses.replace(origin.sampling, seconds=1.0, decoding=decoding))


def _set_aside(path: Path) -> None:
    """Rename a file of saved ids, unless there are none in it."""
    try:
        is_empty = not len(SavedIds(path))
    except ValueError:  # no ids, but somebody's file
        is_empty = not path.exists()
    if is_empty:
        return
    number = next(number for number in itertools.count(1) if not _numbered(path, number).exists())
    aside = path.rename(_numbered(path, number))
    warnings.warn(
        f"{path} was not sampled with these settings: it is kept as {aside.name}, and --config.decode={aside} makes "
        "its video.",
        stacklevel=3,
    )


def _numbered(path: Path, number: int) -> Path:
    return path.with_suffix(f".{number}{path.suffix}")
