"""Shards as img2dataset and video2dataset write them: tar files (webdataset) or parquet files.

A tar holds KEY.jpg, KEY.mp4 or the like with KEY.txt (caption) and KEY.json (metadata) of each example; a parquet file
holds a row for each example, the image or video as bytes in a column named after its type (jpg, mp4, ...).
"""

import bisect
import errno
import functools
import itertools
import json
import tarfile
from pathlib import Path

import msgpack

from loong_jax.config import MediaLimits
from loong_jax.data.bad_media import BadMedium
from loong_jax.data.clips import MOST_CAPTION, Medium
from loong_jax.video_file import EXTENSIONS, IMAGE_EXTENSIONS

_KINDS = tuple(extension.removeprefix(".") for extension in (*EXTENSIONS, *IMAGE_EXTENSIONS))
_OPEN_PARQUETS = 64
_MOST_METADATA = 2**24  # bytes of JSON
_MOST_SIZE = 2**62  # that a header may claim; no file is as large
_NAMES = "surrogateescape"  # of files, whose names need not be UTF-8


class WebShards:
    """Every example of a folder of shards, in the order of shards and keys; nothing is unpacked on disk."""

    def __init__(self, path: str | Path, limits: MediaLimits | None = None):
        """Look through the shards; of what is in them, nothing is read that is larger than ``limits`` allow.

        Raises:
            ValueError: the folder is missing or holds no shard with an example.
        """
        root, self._most = Path(path), (limits or MediaLimits()).max_mib * 2**20
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
            BadMedium: its shard is damaged there, or it has neither image nor video, or one that is too large.
        """
        shard = bisect.bisect_right(self._ends, place)
        row = place - (self._ends[shard - 1] if shard else 0)
        file = self._shards[shard]
        try:
            return (_from_tar if file.suffix == ".tar" else _from_parquet)(file, row, self._most)
        except (OSError, tarfile.TarError, KeyError) as error:
            raise BadMedium("damaged shard", f"{file.name}: {error}") from None


def _num_examples(shard: Path) -> int:
    if shard.suffix == ".tar":
        return len(_tar_index(shard))
    return _open_parquet(shard).metadata.num_rows


@functools.cache
def _tar_index(shard: Path) -> list[bytes]:
    """(key, {extension: (offset, size)}) of every example, packed; of a tar that breaks off, those before.

    It is kept for all shards, in about 100 bytes an example: who reads in random order would look through a whole tar
    for each of them.
    """
    members: dict[str, dict[str, tuple[int, int]]] = {}
    place = -1
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if member.offset <= place or member.size < 0:
                    break  # a size below 0 would lead back, and round and round
                place = member.offset
                if member.isfile() and not member.issparse():
                    key, _, extension = member.name.rpartition(".")
                    members.setdefault(key, {})[extension.lower()] = (member.offset_data, min(member.size, _MOST_SIZE))
    except (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError):
        pass  # headers that lie about sizes, or lead to others without end, raise all of these
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a place that no file can have
            raise
    return [msgpack.packb(example, unicode_errors=_NAMES) for example in sorted(members.items())]


def _from_tar(shard: Path, row: int, most: int) -> Medium:
    key, parts = msgpack.unpackb(_tar_index(shard)[row], unicode_errors=_NAMES)
    kind = next((kind for kind in _KINDS if kind in parts), None)
    if kind is None:
        raise BadMedium("no media", f"{shard.name} has only {', '.join(parts)} for {key}")
    with shard.open("rb") as file:
        length = shard.stat().st_size

        def read(extension, most):
            offset, size = parts[extension]
            if offset + size > length:
                raise BadMedium("damaged shard", f"{shard.name} breaks off inside of {key}.{extension}")
            if size > most:
                raise BadMedium("too large", f"{key}.{extension} has {size:,} bytes, and {most:,} are allowed")
            file.seek(offset)
            return file.read(size)

        content = read(kind, most)
        caption = read("txt", MOST_CAPTION) if "txt" in parts else b""
        metadata = read("json", _MOST_METADATA) if "json" in parts and not caption else b""
    return Medium(f"{shard.name}/{key}", content, _caption(caption, metadata))


def _caption(text: bytes, metadata: bytes) -> str:
    try:
        if not text and metadata:
            return str(json.loads(metadata).get("caption") or "")
        return text.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise BadMedium("caption is not UTF-8") from None
    except (ValueError, AttributeError, RecursionError):
        raise BadMedium("metadata is not JSON") from None


@functools.lru_cache(_OPEN_PARQUETS)
def _open_parquet(shard: Path):
    import pyarrow  # comes with tensorflow-datasets, and takes a while to import
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(shard)
    except (pyarrow.ArrowException, OSError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{shard} cannot be read as a parquet file: {reason}.") from None


def _from_parquet(shard: Path, row: int, most: int) -> Medium:
    import pyarrow

    try:
        start, group = _row_group_of(shard, row, most)
        values = {name: group[name][row - start].as_py() for name in group.column_names}
    except BadMedium:
        raise
    except (pyarrow.ArrowException, ValueError, IndexError, MemoryError) as error:
        raise BadMedium("damaged shard", f"{shard.name}: {error}") from None
    kind = next((kind for kind in _KINDS if isinstance(values.get(kind), bytes)), None)
    key = str(values.get("key", row))
    if kind is None:
        raise BadMedium("no media", f"{shard.name} has no bytes for {key}")
    return Medium(f"{shard.name}/{key}", values[kind], str(values.get("caption") or ""))


def _row_group_of(shard: Path, row: int, most: int):
    file = _open_parquet(shard)
    start = 0
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row < start + rows:
            size = file.metadata.row_group(group).total_byte_size
            if size > most:
                raise BadMedium("too large", f"{shard.name}: row group {group} has {size:,} bytes, of {most:,} allowed")
            return start, _row_group(shard, group)
        start += rows
    raise KeyError(f"row {row}")


@functools.lru_cache(8)
def _row_group(shard: Path, group: int):
    return _open_parquet(shard).read_row_group(group)
