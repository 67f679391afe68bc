"""Long videos with a list of cuts, as HDVG comes: which seconds of which video one caption describes.

The list is a .jsonl or .csv file; a row has ``video`` (a file, relative to the list), ``start`` and ``stop`` (seconds,
or [[HH:]MM:]SS[.fraction]) and ``caption``.
"""

import math
from pathlib import Path

from loong_jax.data.clips import Medium
from loong_jax.data.tables import read_rows


def read_cut_list(path: str | Path) -> list[Medium]:
    """Every cut of a list, in its order.

    Raises:
        ValueError: the list is missing, empty or malformed, or names a video that is not there.
    """
    table = Path(path)
    if not table.is_file():
        raise ValueError(f"List of cuts {path} does not exist.")
    media, known = [], {}
    for line, row in read_rows(table):
        where = f"{table}, line {line}"
        name, caption = row.get("video"), row.get("caption")
        if not isinstance(name, str) or not isinstance(caption, str):
            raise ValueError(f"{where}: a row needs the texts video and caption; it has {row}.")
        video = known.setdefault(name, table.parent / name)
        if not video.is_file():
            raise ValueError(f"{where}: there is no video {video}.")
        start, stop = (_seconds(row.get(field), field, where) for field in ("start", "stop"))
        if not 0 <= start < stop:
            raise ValueError(f"{where}: start {start:g} must be at least 0 and before stop {stop:g}.")
        media.append(Medium(f"{name}@{start:g}", video, caption, start, stop))
    if not media:
        raise ValueError(f"List of cuts {path} is empty.")
    return media


def _seconds(value, field: str, where: str) -> float:
    try:
        parts = [float(part) for part in str(value).split(":")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 3 or not all(math.isfinite(part) for part in parts):
        raise ValueError(f"{where}: {field} is {value!r}, and must be seconds or HH:MM:SS.")
    return sum(part * 60**power for power, part in enumerate(reversed(parts)))
