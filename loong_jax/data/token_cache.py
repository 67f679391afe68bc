"""Ids that a frozen tokenizer made of a source, in ArrayRecord shards.

A folder holds ``meta.json`` and ``tokens-NNNNN-of-NNNNN.array_record``, a msgpack record for each example. A shard is
complete or absent, so a kill costs at most one, and hosts can write different ones at once.
"""

import dataclasses
import json
import math
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

import msgpack
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from loong_jax.data.bad_media import BadMedia, BadMedium


@dataclasses.dataclass(frozen=True)
class CacheMeta:
    """What a cache holds: whose ids, of which source, how many of which shape."""

    fingerprint: str  # of the video tokenizer
    text_fingerprint: str  # of the text tokenizer
    source: dict
    num_examples: int
    grid: tuple[int, int, int]  # latent frames, height, width
    num_codes: int
    fps: float
    shard_size: int = 256

    def __post_init__(self):
        numbers = (self.num_examples, self.num_codes, self.shard_size, *self.grid)
        if not all(type(number) is int and 0 < number < 2**48 for number in numbers) or len(self.grid) != 3:
            raise ValueError(f"its numbers must be whole and above 0, and grid three of them; got {numbers}")
        if not isinstance(self.fps, (int, float)) or not 0 < self.fps < math.inf:
            raise ValueError(f"fps must be a number above 0; got {self.fps!r}")
        if not isinstance(self.source, dict) or not all(
            isinstance(name, str) for name in (self.fingerprint, self.text_fingerprint)
        ):
            raise ValueError("source must be a group, and fingerprints texts")

    @property
    def dtype(self) -> str:
        """Of the codes."""
        return "<u2" if self.num_codes <= 2**16 else "<u4"

    @property
    def num_shards(self) -> int:
        """How many files hold the examples; all but the last hold ``shard_size``."""
        return -(-self.num_examples // self.shard_size)


@dataclasses.dataclass(frozen=True)
class TokenExample:
    """One clip as ids: codes [frames, h, w], the ids of its whole caption, and which clip of which medium it is."""

    codes: np.ndarray
    text_ids: list[int]
    key: str


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
            temporary = self._path / f"meta.{uuid.uuid4().hex}.tmp"  # hosts that begin together share no name
            temporary.write_text(json.dumps(dataclasses.asdict(meta), indent=2))
            os.replace(temporary, self._path / "meta.json")

    def missing_shards(self, process_index: int = 0, process_count: int = 1) -> list[tuple[int, range]]:
        """Shards that this process has still to write, each with the examples that belong in it."""
        return [
            (shard, self._examples_of(shard))
            for shard in range(process_index, self._meta.num_shards, process_count)
            if not _shard_path(self._path, self._meta, shard).exists()
        ]

    def write(self, shard: int, examples: Sequence[TokenExample]) -> None:
        """Write one shard.

        Raises:
            ValueError: the number of examples or the shape of their codes is not this shard's, or a code is outside
                [0, num_codes).
            OSError: the disk is full, or the folder cannot be written.
        """
        meta, path = self._meta, _shard_path(self._path, self._meta, shard)
        expected = len(self._examples_of(shard))
        if len(examples) != expected or any(example.codes.shape != meta.grid for example in examples):
            raise ValueError(
                f"{path} holds {expected} examples with codes {meta.grid}; got {len(examples)} with "
                f"{sorted({example.codes.shape for example in examples})}."
            )
        records = [self._record(example) for example in examples]
        temporary = path.with_suffix(".tmp")
        try:
            writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
            for record in records:
                writer.write(record)
            writer.close()
        except RuntimeError as error:
            temporary.unlink(missing_ok=True)
            reason = str(error).split(";")[0]
            raise OSError(
                f"{path} could not be written ({reason}): make room, and the same command goes on."
            ) from error
        os.replace(temporary, path)  # its presence says that the shard is complete

    def _record(self, example: TokenExample) -> bytes:
        meta, codes = self._meta, example.codes
        if codes.min() < 0 or codes.max() >= meta.num_codes:
            raise ValueError(f"Codes must lie in [0, {meta.num_codes}); got {codes.min()} to {codes.max()}.")
        record = {
            "codes": codes.astype(meta.dtype).tobytes(),
            "text_ids": list(example.text_ids),
            "key": example.key,
            "fps": meta.fps,
            "tokenizer": meta.fingerprint,
        }
        return msgpack.packb(record)

    def _examples_of(self, shard: int) -> range:
        start = shard * self._meta.shard_size
        return range(start, min(start + self._meta.shard_size, self._meta.num_examples))


class TokenCache:
    """Random access to a complete cache: {"codes": [frames, h, w], "text_ids": list of int, "key": str}."""

    def __init__(
        self,
        path: str | Path,
        fingerprint: str | None = None,
        text_fingerprint: str | None = None,
        *,
        bad: BadMedia | None = None,
    ):
        """Open a cache; records are read when they are needed, and damaged ones passed over.

        Raises:
            ValueError: it is missing or incomplete, or was made by another tokenizer than ``fingerprint`` or another
                text tokenizer than ``text_fingerprint``.
        """
        self._path, self._bad = Path(path), bad or BadMedia(f"Token cache {path}", 0.1)
        if not (self._path / "meta.json").exists():
            raise ValueError(f"{path} is no token cache: it has no meta.json.")
        self.meta = _read_meta(self._path)
        # Counted first: meta.json may ask for more than could be listed.
        lacking = self.meta.num_shards - sum(1 for _ in self._path.glob("tokens-*.array_record"))
        lacking = lacking if lacking > 0 else len(TokenCacheWriter(path, self.meta).missing_shards())
        if lacking:
            raise ValueError(f"Token cache {path} lacks {lacking} shards: run the tokenization again to complete it.")
        for made_by, wanted, what in (
            (self.meta.fingerprint, fingerprint, "tokenizer"),
            (self.meta.text_fingerprint, text_fingerprint, "text tokenizer"),
        ):
            if wanted is not None and wanted != made_by:
                raise ValueError(
                    f"Token cache {path} was made by {what} {made_by}, not by {wanted}: its ids mean something else. "
                    "Tokenize again, or name the tokenizer that made it: --config.tokenizer_path=DIR."
                )
        shards = [str(_shard_path(self._path, self.meta, shard)) for shard in range(self.meta.num_shards)]
        try:
            self._records = ArrayRecordDataSource(shards)
            held = len(self._records)
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(
                f"Token cache {path} has a damaged shard: delete it and tokenize again ({error})."
            ) from None
        if held != self.meta.num_examples:
            raise ValueError(
                f"Token cache {path} has {held} records instead of {self.meta.num_examples}: delete it and tokenize "
                "again."
            )

    def __len__(self) -> int:
        return self.meta.num_examples

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return self._bad.first_good(int(index), range(len(self)), self._read)

    def _read(self, place: int, attempt: int) -> dict:
        try:
            record = msgpack.unpackb(self._records[place])
            codes = np.frombuffer(record["codes"], self.meta.dtype).reshape(self.meta.grid)
            example = {"codes": codes, "text_ids": record["text_ids"], "key": record["key"]}
            made_by = record["tokenizer"]
            _check_example(example, self.meta.num_codes)
        except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
            raise BadMedium("damaged record", f"{self._shard_of(place).name}: {error}") from None
        if made_by != self.meta.fingerprint:
            raise ValueError(
                f"Shard {self._shard_of(place)} was made by tokenizer {made_by}, the others by "
                f"{self.meta.fingerprint}: delete it and run the tokenization again."
            )
        return example

    def _shard_of(self, place: int) -> Path:
        return _shard_path(self._path, self.meta, place // self.meta.shard_size)


def _shard_path(folder: Path, meta: CacheMeta, shard: int) -> Path:
    return folder / f"tokens-{shard:05d}-of-{meta.num_shards:05d}.array_record"


def _read_meta(folder: Path) -> CacheMeta:
    try:
        values = json.loads((folder / "meta.json").read_text())
        return CacheMeta(**{**values, "grid": tuple(values["grid"])})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder / 'meta.json'} is damaged ({reason}): delete the folder to make it anew.") from None


def _check_example(example: dict, num_codes: int) -> None:
    text_ids = example["text_ids"]
    if example["codes"].max() >= num_codes:
        raise ValueError(f"a code is {example['codes'].max()}, and there are {num_codes}")
    if type(text_ids) is not list or not all(type(number) is int and 0 <= number < 2**31 for number in text_ids):
        raise ValueError("text_ids is no list of ids")
    if not isinstance(example["key"], str):
        raise ValueError("key is no text")


def _check_same(folder: Path, stored: CacheMeta, wanted: CacheMeta) -> None:
    for field in dataclasses.fields(CacheMeta):
        old, new = getattr(stored, field.name), getattr(wanted, field.name)
        if isinstance(old, dict):
            changed = [name for name in old.keys() | new.keys() if old.get(name) != new.get(name)]
            old, new = ({name: values.get(name) for name in sorted(changed)} for values in (old, new))
        if old != new:
            raise ValueError(
                f"Token cache {folder} was made with {field.name} {old}, but {new} is wanted: "
                "delete the folder to make it anew, or use another."
            )
