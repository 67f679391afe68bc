"""What a source is, in a few letters: the same for the same files, on whatever host."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from loong_jax.config import DataConfig, SourceName, parse_sources


def data_fingerprint(data: DataConfig) -> str:
    """A hash of the names and sizes of the files that ``data`` names, or why they cannot be listed; none is opened."""
    digest = hashlib.sha256()
    try:
        for text in filter(None, (data.source, data.image_source)):
            for name in parse_sources("data.source", text):
                for part in _parts(name):
                    digest.update(part.encode("utf-8", errors="replace") + b"\0")
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return digest.hexdigest()[:12]


def _parts(name: SourceName) -> Iterator[str]:
    yield name.kind
    root = Path(name.where)
    if name.kind == "moving_digits" or (name.kind == "tfds" and not root.is_dir()):
        return
    if root.is_file():
        yield f"{root.name} {root.stat().st_size}"
        return
    patterns = {"web_shards": ("*.tar", "*.parquet"), "tokens": ("*/meta.json", "*/*.array_record")}
    root.stat()  # raises where it is not there
    for pattern in patterns.get(name.kind, ("**/*",)):
        for file in sorted(root.glob(pattern)):
            if file.is_file():
                yield f"{file.relative_to(root)} {file.stat().st_size}"
