"""Checksums of all files in a folder: whatever changes in them afterwards is found and named.

What was wrong before, in memory or on its way to the disk, is vouched for with the rest.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MANIFEST = "checksums.json"
_THREADS = 4  # hashing and reading leave Python to others


def write(folder: str | Path) -> None:
    """Write ``checksums.json``: size and SHA-256 of each file in ``folder``. It is complete or absent."""
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    with ThreadPoolExecutor(_THREADS) as threads:
        entries = list(threads.map(_entry, files))
    names = [path.relative_to(folder).as_posix() for path in files]
    temporary = folder / (MANIFEST + ".tmp")
    with temporary.open("w") as file:
        json.dump(dict(zip(names, entries, strict=True)), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MANIFEST)


def find_damage(folder: str | Path, *parts: str) -> str:
    """What is wrong with the files of ``folder``, or of its folders ``parts`` alone; "" where nothing is."""
    folder = Path(folder)
    try:
        entries = {name: tuple(entry) for name, entry in json.loads((folder / MANIFEST).read_text()).items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, AttributeError, TypeError, OSError):
        return f"{MANIFEST} cannot be read"
    wanted = {name: entry for name, entry in entries.items() if not parts or name.split("/")[0] in parts}
    with ThreadPoolExecutor(_THREADS) as threads:
        return next(filter(None, threads.map(_damage, [folder] * len(wanted), wanted, wanted.values())), "")


def _entry(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _damage(folder: Path, name: str, entry: tuple) -> str:
    try:
        size = (folder / name).stat().st_size
        if entry[:1] != (size,):
            return f"{name} has {size} bytes instead of {entry[0] if entry else '?'}"
        return "" if _entry(folder / name) == entry else f"{name} has other bytes than were written"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
