"""Batches as a function of (seed, step) alone: grain reads, shuffles, transforms and prefetches.

Order and randomness do not depend on threads, on where a training was interrupted, or on how many processes share a
global batch.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from loong_jax.config import DataConfig, LossConfig
from loong_jax.data.sequences import build_sequence
from loong_jax.data.text import TextTokenizer
from loong_jax.vocab import Vocabulary

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
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Describe the stream.

        Args:
            source: random access to examples.
            transform: (example, rng) -> arrays of fixed shape; the rng depends on seed and place in the stream.
            batch_size: rows of the global batch; this process yields its ``1 / process_count`` of them.
        """
        if batch_size % process_count:
            raise ValueError(f"batch_size {batch_size} is not a multiple of the {process_count} processes.")
        examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
        examples = examples.random_map(transform)
        rows = batch_size // process_count
        # Contiguous parts of every global batch: process p has rows [p * rows, (p + 1) * rows).
        own = grain.MapDataset.source(_Part(examples, rows, batch_size, process_index * rows))
        self._batches = own.batch(rows)
        self._num_threads = num_threads

    def mixed_with(self, other: "Batches", share: float, seed: int) -> "Batches":
        """This stream, with a random ``share`` of its batches taken from ``other``."""
        mixed = copy.copy(self)
        mixed._batches = grain.MapDataset.source(_Mixed(self._batches, other._batches, share, seed))
        return mixed

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """Batches of step ``start_step``, ``start_step`` + 1, ..."""
        options = grain.ReadOptions(num_threads=self._num_threads, prefetch_buffer_size=4 * self._num_threads)
        return iter(self._batches[start_step:].to_iter_dataset(options))


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


def video_batches(
    source: Any, data: DataConfig, *, images: Any | None = None, batch_size: int, seed: int, **process: int
) -> Batches:
    """Batches {"video": uint8 [b, t, h, w, 3]} for the tokenizer; ``data.image_share`` of them come from ``images``."""

    def transform(example: dict, rng: np.random.Generator) -> dict:
        return {"video": example["video"]}

    options = dict(batch_size=batch_size, seed=seed, num_threads=data.num_threads, **process)
    batches = Batches(source, transform, **options)
    if images is None or not data.image_share:
        return batches
    return batches.mixed_with(Batches(images, transform, **options), data.image_share, seed)


def language_model_batches(
    clips: Any,
    images: Any | None,
    data: DataConfig,
    loss: LossConfig,
    vocabulary: Vocabulary,
    *,
    latent_frames: int,
    length: int,
    text: TextTokenizer,
    batch_size: int,
    seed: int,
    **process: int,
) -> Batches:
    """Batches of the language model's contract, from caches of ids.

    A clip is cut to its first ``latent_frames`` latent frames: the tokenizer is causal, so they are the ids of the
    shorter clip. ``data.image_share`` of the rows come from ``images``; a share ``data.text_drop`` of captions becomes
    the null text.
    """

    def transform(example: dict, rng: np.random.Generator) -> dict:
        is_image = latent_frames == 1
        if not is_image and images is not None and rng.random() < data.image_share:
            example, is_image = images[int(rng.integers(len(images)))], True
        dropped = rng.random() < data.text_drop
        text_ids = None if dropped else text.encode(example["caption"])[: data.max_text_ids]
        codes = example["codes"][: 1 if is_image else latent_frames]
        return build_sequence(text_ids, codes, vocabulary, length, loss, is_image)

    return Batches(clips, transform, batch_size=batch_size, seed=seed, num_threads=data.num_threads, **process)
