"""Long videos with a list of cuts, as HDVG comes: which seconds of which video one caption describes.

The list is a .jsonl or .csv file; a row has ``video`` (a file, relative to the list), ``start`` and ``stop`` (seconds,
or [[HH:]MM:]SS[.fraction]) and ``caption``.
"""

import math
import os
from pathlib import Path

from loong_jax.data.bad_media import BadMedium
from loong_jax.data.clips import Medium
from loong_jax.data.tables import read_rows

_FIELDS = ("video", "start", "stop", "caption")


class CutList:
    """The cuts of a list, in its order."""

    def __init__(self, path: str | Path):
        """Read the list; the videos are not opened.

        Raises:
            ValueError: it is missing or empty, is not JSON lines or CSV, or its first row lacks a field.
        """
        self._table = Path(path)
        if not self._table.is_file():
            found = f"{path} is no file" if self._table.exists() else f"List of cuts {path} does not exist"
            raise ValueError(f"{found}: name a .jsonl or .csv file, --config.data.source=cut_list:FILE.")
        self._rows = read_rows(self._table)
        if not self._rows:
            raise ValueError(f"List of cuts {path} is empty.")
        line, row = self._rows[0]
        if not all(field in row for field in _FIELDS):
            raise ValueError(f"{path}, line {line}: a row needs {', '.join(_FIELDS)}; it has {row}.")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> Medium:
        """One cut.

        Raises:
            BadMedium: its row is malformed, or its video is not there or outside of the list's folder.
        """
        line, row = self._rows[place]
        where = f"{self._table.name}, line {line}"
        name, caption = row.get("video"), row.get("caption")
        if not isinstance(name, str) or not isinstance(caption, str):
            raise BadMedium("malformed row", f"{where}: video and caption must be texts; it has {row}")
        start, stop = (_seconds(row.get(field), field, where) for field in ("start", "stop"))
        if not 0 <= start < stop:
            raise BadMedium("malformed row", f"{where}: start {start:g} must be at least 0 and before stop {stop:g}")
        # By the name alone: a link in the folder is its owner's.
        if Path(name).is_absolute() or os.path.normpath(name).startswith(".."):
            raise BadMedium("outside the folder", f"{where}: video {name} must lie in the folder of the list")
        video = self._table.parent / name
        if not video.is_file():
            raise BadMedium("no such file", f"{where}: there is no video {video}")
        return Medium(f"{name}@{start:g}", video, caption.strip(), start, stop)


def _seconds(value, field: str, where: str) -> float:
    try:
        parts = [float(part) for part in str(value).split(":")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 3 or not all(math.isfinite(part) for part in parts):
        raise BadMedium("malformed row", f"{where}: {field} is {value!r}, and must be seconds or HH:MM:SS")
    return sum(part * 60**power for power, part in enumerate(reversed(parts)))
