"""Shards as img2dataset and video2dataset write them: tar files (webdataset) or parquet files.

A tar holds KEY.jpg, KEY.mp4 or the like with KEY.txt (caption) and KEY.json (metadata) of each example; a parquet file
holds a row for each example, the image or video as bytes in a column named after its type (jpg, mp4, ...).
"""

import bisect
import functools
import itertools
import json
import tarfile
from pathlib import Path

from loong_jax.data.bad_media import BadMedium
from loong_jax.data.clips import Medium
from loong_jax.video import EXTENSIONS, IMAGE_EXTENSIONS

_KINDS = tuple(extension.removeprefix(".") for extension in (*EXTENSIONS, *IMAGE_EXTENSIONS))
_OPEN_SHARDS = 64  # whose indices are kept


class WebShards:
    """Every example of a folder of shards, in the order of shards and keys; nothing is unpacked on disk."""

    def __init__(self, path: str | Path):
        """Look through the shards.

        Raises:
            ValueError: the folder is missing or holds no shard with an example.
        """
        root = Path(path)
        if not root.is_dir():
            found = f"{path} is no folder" if root.exists() else f"Folder of shards {path} does not exist"
            raise ValueError(f"{found}: name the one with the tars, --config.data.source=web_shards:DIR.")
        # Beside each tar lies a parquet file with its metadata alone, which is no shard.
        tars = sorted(root.glob("*.tar"))
        self._shards = tars or sorted(root.glob("*.parquet"))
        if not self._shards:
            raise ValueError(f"Folder {path} holds no shard: looked for *.tar and *.parquet.")
        self._ends = list(itertools.accumulate(_num_examples(shard) for shard in self._shards))
        if not self._ends[-1]:
            raise ValueError(f"The {len(self._shards)} shards in {path} hold no example.")

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, place: int) -> Medium:
        """Read one example.

        Raises:
            BadMedium: its shard is damaged there, or it has neither image nor video.
        """
        shard = bisect.bisect_right(self._ends, place)
        row = place - (self._ends[shard - 1] if shard else 0)
        file = self._shards[shard]
        try:
            return _from_tar(file, row) if file.suffix == ".tar" else _from_parquet(file, row)
        except (OSError, tarfile.TarError, KeyError) as error:
            raise BadMedium("damaged shard", f"{file.name}: {error}") from None


def _num_examples(shard: Path) -> int:
    if shard.suffix == ".tar":
        return len(_tar_index(shard))
    return _open_parquet(shard).metadata.num_rows


@functools.lru_cache(_OPEN_SHARDS)
def _tar_index(shard: Path) -> list[tuple[str, dict[str, tuple[int, int]]]]:
    """(key, {extension: (offset, size)}) of every example; of a tar that breaks off, those before."""
    members: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if member.isfile():
                    key, _, extension = member.name.rpartition(".")
                    members.setdefault(key, {})[extension.lower()] = (member.offset_data, member.size)
    except tarfile.TarError:
        pass
    return sorted(members.items())


def _from_tar(shard: Path, row: int) -> Medium:
    key, parts = _tar_index(shard)[row]
    kind = next((kind for kind in _KINDS if kind in parts), None)
    if kind is None:
        raise BadMedium("no media", f"{shard.name} has only {', '.join(parts)} for {key}")
    with shard.open("rb") as file:

        def read(extension):
            offset, size = parts[extension]
            file.seek(offset)
            content = file.read(size)
            if len(content) < size:
                raise BadMedium("damaged shard", f"{shard.name} breaks off inside of {key}.{extension}")
            return content

        content = read(kind)
        caption = read("txt") if "txt" in parts else b""
        metadata = read("json") if "json" in parts and not caption else b""
    return Medium(f"{shard.name}/{key}", content, _caption(caption, metadata))


def _caption(text: bytes, metadata: bytes) -> str:
    try:
        if not text and metadata:
            return str(json.loads(metadata).get("caption") or "")
        return text.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise BadMedium("caption is not UTF-8") from None
    except (json.JSONDecodeError, AttributeError):
        raise BadMedium("metadata is not JSON") from None


@functools.lru_cache(_OPEN_SHARDS)
def _open_parquet(shard: Path):
    import pyarrow  # comes with tensorflow-datasets, and takes a while to import
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(shard)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{shard} cannot be read as a parquet file: {error}.") from None


def _from_parquet(shard: Path, row: int) -> Medium:
    start, group = _row_group_of(shard, row)
    values = {name: group[name][row - start].as_py() for name in group.column_names}
    kind = next((kind for kind in _KINDS if isinstance(values.get(kind), bytes)), None)
    key = str(values.get("key", row))
    if kind is None:
        raise BadMedium("no media", f"{shard.name} has no bytes for {key}")
    return Medium(f"{shard.name}/{key}", values[kind], str(values.get("caption") or ""))


def _row_group_of(shard: Path, row: int):
    file = _open_parquet(shard)
    start = 0
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row < start + rows:
            return start, _row_group(shard, group)
        start += rows
    raise KeyError(f"row {row}")


@functools.lru_cache(8)
def _row_group(shard: Path, group: int):
    return _open_parquet(shard).read_row_group(group)
