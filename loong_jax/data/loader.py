"""Batches as a function of (seed, step) alone: grain reads, shuffles, transforms and prefetches.

Order and randomness do not depend on threads, on where a training was interrupted, or on how many processes share a
global batch.
"""

import copy
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from loong_jax.config import DataConfig

Batch = dict[str, np.ndarray]


class Batches:
    """An endless, shuffled stream of batches that can start at any step."""

    def __init__(
        self,
        source: Any,
        transform: Callable[[dict, np.random.Generator], dict[str, np.ndarray]],
        *,
        batch_size: int,
        seed: int,
        num_threads: int,
        num_workers: int = 0,
        group: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Describe the stream.

        Args:
            source: random access to examples.
            transform: (example, rng) -> arrays of fixed shape; the rng depends on seed and place in the stream.
            batch_size: rows of the global batch; this process yields its ``1 / process_count`` of them.
            num_threads: that read and transform, in each worker.
            num_workers: processes that do; 0: this one.
            group: above 0, ``transform`` gets a list of this many examples for each row.
        """
        if batch_size % process_count:
            raise ValueError(f"batch_size {batch_size} is not a multiple of the {process_count} processes.")
        examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
        if group:
            examples = grain.MapDataset.source(_Groups(examples, group)).seed(seed)
        examples = examples.random_map(transform)
        rows = batch_size // process_count
        # Contiguous parts of every global batch: process p has rows [p * rows, (p + 1) * rows).
        own = grain.MapDataset.source(_Part(examples, rows, batch_size, process_index * rows))
        self._batches = own.batch(rows, drop_remainder=True)  # else grain overflows where a batch is one row
        self._num_threads, self._num_workers = num_threads, num_workers

    def mixed_with(self, other: "Batches", share: float, seed: int) -> "Batches":
        """This stream, with a random ``share`` of its batches taken from ``other``."""
        mixed = copy.copy(self)
        mixed._batches = grain.MapDataset.source(_Mixed(self._batches, other._batches, share, seed))
        return mixed

    def __getitem__(self, step: int) -> Batch:
        """The batch of one step."""
        return self._batches[step]

    def dataset(self, start_step: int = 0) -> grain.IterDataset:
        """Batches of step ``start_step``, ``start_step`` + 1, ... as grain's data set."""
        return _prefetched(self._batches[start_step:], self._num_threads, self._num_workers)

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """Batches of step ``start_step``, ``start_step`` + 1, ..."""
        return iter(self.dataset(start_step))


def read_in_order(source: Any, indices: Sequence[int], data: DataConfig) -> Iterator[dict]:
    """Examples ``indices`` of a source, in this order, read ahead by threads or processes."""
    return iter(_prefetched(grain.MapDataset.source(_Chosen(source, indices)), data.num_threads, data.num_workers))


def _prefetched(examples: grain.MapDataset, num_threads: int, num_workers: int) -> grain.IterDataset:
    ahead = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=4 * num_threads)
    dataset = examples.to_iter_dataset(ahead)
    if not num_workers:
        return dataset
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain hands its flags to the workers
    return dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers), worker_init_fn=_end_with_parent)


def _end_with_parent(worker: int, num_workers: int) -> None:
    """A worker whose training was killed would wait for it for ever, with the memory that it holds."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Chosen:
    """Some examples of a source."""

    def __init__(self, source: Any, indices: Sequence[int]):
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict:
        return self._source[self._indices[index]]


class _Groups:
    """Every ``size`` examples of an endless dataset as a list."""

    def __init__(self, examples: Any, size: int):
        self._examples, self._size = examples, size

    def __len__(self) -> int:
        return len(self._examples) // self._size

    def __getitem__(self, index: int) -> list:
        return [self._examples[index * self._size + place] for place in range(self._size)]


class _Mixed:
    """The batches of ``first``, a random ``share`` of them replaced by those of ``second``."""

    def __init__(self, first: Any, second: Any, share: float, seed: int):
        self._first, self._second, self._share, self._seed = first, second, share, seed

    def __len__(self) -> int:
        return min(len(self._first), len(self._second))

    def __getitem__(self, step: int) -> dict:
        is_second = np.random.default_rng((self._seed, step)).random() < self._share
        return (self._second if is_second else self._first)[step]


class _Part:
    """Rows [offset, offset + rows) of every ``batch_size`` examples of an endless dataset."""

    def __init__(self, examples: Any, rows: int, batch_size: int, offset: int):
        self._examples, self._rows, self._batch_size, self._offset = examples, rows, batch_size, offset

    def __len__(self) -> int:
        return len(self._examples) // self._batch_size * self._rows

    def __getitem__(self, index: int) -> dict:
        batch, row = divmod(index, self._rows)
        return self._examples[batch * self._batch_size + self._offset + row]


def readers(data: DataConfig) -> dict[str, int]:
    """The arguments of ``Batches`` that say who reads."""
    return {"num_threads": data.num_threads, "num_workers": data.num_workers}


def video_batches(
    source: Any, data: DataConfig, *, images: Any | None = None, batch_size: int, seed: int, **process: int
) -> Batches:
    """Batches {"video": uint8 [b, t, h, w, 3]} for the tokenizer; ``data.image_share`` of them come from ``images``."""

    def transform(example: dict, rng: np.random.Generator) -> dict:
        return {"video": example["video"]}

    options = dict(batch_size=batch_size, seed=seed, **readers(data), **process)
    batches = Batches(source, transform, **options)
    if images is None or not data.image_share:
        return batches
    return batches.mixed_with(Batches(images, transform, **options), data.image_share, seed)
