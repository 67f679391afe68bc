"""Ids that a frozen tokenizer made of a source, on disk, written shard by shard.

A folder holds ``meta.json`` and, per shard, ``codes_NNNNN.npy`` [n, frames, h, w] and ``captions_NNNNN.json``. A shard
is complete or absent, so a kill costs at most one shard.
"""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np


@dataclasses.dataclass(frozen=True)
class CacheMeta:
    """What a cache holds: whose ids, of which source, how many of which shape."""

    fingerprint: str  # of the tokenizer
    source: dict
    num_examples: int
    grid: tuple[int, int, int]  # latent frames, height, width
    num_codes: int
    shard_size: int = 256


class TokenCacheWriter:
    """Fills a cache; shards that are already there are kept."""

    def __init__(self, path: str | Path, meta: CacheMeta):
        """Open or create the folder.

        Raises:
            ValueError: the folder holds a cache of something else.
        """
        self._path, self._meta = Path(path), meta
        self._path.mkdir(parents=True, exist_ok=True)
        if (self._path / "meta.json").exists():
            _check_same(self._path, _read_meta(self._path), meta)
        else:
            _write_atomically(self._path / "meta.json", json.dumps(dataclasses.asdict(meta), indent=2).encode())

    def missing_shards(self) -> list[tuple[int, range]]:
        """Shards still to be written, each with the examples that belong in it."""
        meta = self._meta
        starts = range(0, meta.num_examples, meta.shard_size)
        return [
            (shard, range(start, min(start + meta.shard_size, meta.num_examples)))
            for shard, start in enumerate(starts)
            if not _captions_path(self._path, shard).exists()
        ]

    def write(self, shard: int, codes: np.ndarray, captions: list[str]) -> None:
        """Write one shard: ``codes`` int [n, frames, h, w] and n captions.

        Raises:
            ValueError: their number or shape is not this shard's, or a code is outside [0, num_codes).
        """
        meta = self._meta
        expected = (min(meta.shard_size, meta.num_examples - shard * meta.shard_size), *meta.grid)
        if codes.shape != expected or len(captions) != expected[0]:
            raise ValueError(
                f"Shard {shard} of token cache {self._path} holds codes {expected} and {expected[0]} captions; "
                f"got codes {codes.shape} and {len(captions)} captions."
            )
        if codes.min() < 0 or codes.max() >= meta.num_codes:
            raise ValueError(f"Codes must lie in [0, {meta.num_codes}); got {codes.min()} to {codes.max()}.")
        temporary = self._path / f"codes_{shard:05d}.tmp.npy"
        np.save(temporary, codes.astype(np.uint16))
        os.replace(temporary, _codes_path(self._path, shard))
        # Written last: its presence says that the shard is complete.
        _write_atomically(_captions_path(self._path, shard), json.dumps(captions).encode())


class TokenCache:
    """Random access to a complete cache: {"codes": uint16 [frames, h, w], "caption": str}."""

    def __init__(self, path: str | Path, fingerprint: str | None = None):
        """Open a cache, memory-mapped.

        Raises:
            ValueError: it is missing or incomplete, or was made by another tokenizer than ``fingerprint``.
        """
        self._path = Path(path)
        if not (self._path / "meta.json").exists():
            raise ValueError(f"{path} is no token cache: it has no meta.json.")
        self.meta = _read_meta(self._path)
        missing = TokenCacheWriter(path, self.meta).missing_shards()
        if missing:
            raise ValueError(
                f"Token cache {path} lacks {len(missing)} shards: run the tokenization again to complete it."
            )
        if fingerprint is not None and fingerprint != self.meta.fingerprint:
            raise ValueError(
                f"Token cache {path} was made by tokenizer {self.meta.fingerprint}, not by {fingerprint}: "
                "its ids mean other pictures. Delete the folder to make it anew."
            )
        num_shards = -(-self.meta.num_examples // self.meta.shard_size)
        self._codes = [np.load(_codes_path(self._path, shard), mmap_mode="r") for shard in range(num_shards)]
        self._captions = [
            caption
            for shard in range(num_shards)
            for caption in json.loads(_captions_path(self._path, shard).read_text())
        ]

    def __len__(self) -> int:
        return self.meta.num_examples

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        shard, offset = divmod(int(index), self.meta.shard_size)
        return {"codes": np.asarray(self._codes[shard][offset]), "caption": self._captions[index]}


def _codes_path(folder: Path, shard: int) -> Path:
    return folder / f"codes_{shard:05d}.npy"


def _captions_path(folder: Path, shard: int) -> Path:
    return folder / f"captions_{shard:05d}.json"


def _read_meta(folder: Path) -> CacheMeta:
    try:
        values = json.loads((folder / "meta.json").read_text())
        return CacheMeta(**{**values, "grid": tuple(values["grid"])})
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"{folder / 'meta.json'} is damaged ({error}): delete the folder to make it anew.") from None


def _check_same(folder: Path, stored: CacheMeta, wanted: CacheMeta) -> None:
    for field in dataclasses.fields(CacheMeta):
        old, new = getattr(stored, field.name), getattr(wanted, field.name)
        if old != new:
            raise ValueError(
                f"Token cache {folder} was made with {field.name} {old}, but {new} is wanted: "
                "delete the folder to make it anew, or use another."
            )


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
