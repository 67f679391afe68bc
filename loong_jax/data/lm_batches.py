"""Batches of the language model: rows of ids, from caches of ids or from pixels that are encoded as they come."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from loong_jax.config import DataConfig, LossConfig
from loong_jax.data.loader import Batch, Batches, readers
from loong_jax.data.sequences import Row, build_sequence, pack_sequences
from loong_jax.data.text import TextTokenizer
from loong_jax.vocab import Vocabulary


def language_model_batches(
    clips: Any,
    images: Any | None,
    data: DataConfig,
    loss: LossConfig,
    vocabulary: Vocabulary,
    *,
    latent_frames: int,
    length: int,
    batch_size: int,
    seed: int,
    rope: str = "1d",
    reencoded: Any | None = None,
    **process: int,
) -> Batches:
    """Batches of the language model's contract, from caches of ids.

    A clip is cut to its first ``latent_frames`` latent frames: the tokenizer is causal, so they are the ids of the
    shorter clip. ``data.image_share`` of the rows come from ``images``; empty captions and a share ``data.text_drop``
    become the null text. With ``data.pack`` a row has that many clips, or as many images as fit, one segment each; what
    captions leave free is filled with images, drawn at random.

    Where ``reencoded`` has the first latent frames of each clip, encoded again from what is decoded of them, a share
    ``data.reencoded_share`` of the clips starts with those.
    """
    if reencoded is not None:
        clips = _WithReencoded(clips, reencoded)
    layout = _Layout(data, loss, vocabulary, latent_frames, length, images, rope)
    transform = layout.packed_row if data.pack else layout.row
    # Ids are Python's work alone: more threads of one process would wait for each other.
    options = readers(data) | {"num_threads": 1} | process
    return Batches(clips, transform, batch_size=batch_size, seed=seed, group=data.pack, **options)


class _Layout:
    """From examples with ids to rows of a batch."""

    def __init__(self, data, loss, vocabulary, latent_frames, length, images, rope):
        self._data, self._loss, self._vocabulary, self._rope = data, loss, vocabulary, rope
        self._frames, self._length, self._images = latent_frames, length, images

    def row(self, example: dict, rng: np.random.Generator) -> Row:
        example, is_image, is_dropped = choose(example, self._images, self._frames, self._data, rng)
        return self._sequence(self._restarted(example, is_image, rng), is_image, is_dropped, self._length)

    def encoded_row(self, codes: np.ndarray, text_ids: np.ndarray, is_image: bool, is_dropped: bool) -> Row:
        example = {"codes": codes, "text_ids": text_ids[text_ids >= 0].tolist()}
        return self._sequence(example, bool(is_image), bool(is_dropped), self._length)

    def packed_row(self, examples: list[dict], rng: np.random.Generator) -> Row:
        """Several clips, or images, and images in the room that is left."""
        of_images = self._frames == 1
        if not of_images and self._images is not None and rng.random() < self._data.image_share:
            examples = []
        chosen = [self._segment(example, of_images, rng) for example in examples]
        room = self._length - sum(len(row["tokens"]) for row in chosen)
        while self._images is not None:
            segment = self._segment(_drawn(self._images, rng), True, rng)
            room -= len(segment["tokens"])
            if room < 0:
                break
            chosen.append(segment)
        return pack_sequences(chosen, self._vocabulary, self._length)

    def _segment(self, example: dict, is_image: bool, rng: np.random.Generator) -> Row:
        is_dropped = rng.random() < self._data.text_drop
        return self._sequence(self._restarted(example, is_image, rng), is_image, is_dropped)

    def _restarted(self, example: dict, is_image: bool, rng: np.random.Generator) -> dict:
        """The clip as it is, or as a round starts it."""
        if is_image or "reencoded" not in example or rng.random() >= self._data.reencoded_share:
            return example
        given = example["reencoded"]
        return example | {"codes": np.concatenate([given, example["codes"][len(given) :]]), "num_given": len(given)}

    def _sequence(self, example: dict, is_image: bool, is_dropped: bool, length: int | None = None) -> Row:
        text_ids = None if is_dropped else example["text_ids"][: self._data.max_text_ids] or None
        codes = example["codes"][: 1 if is_image else self._frames]
        given = example.get("num_given", 0)
        return build_sequence(text_ids, codes, self._vocabulary, length, self._loss, is_image, self._rope, given)


def choose(
    example: dict, images: Any | None, latent_frames: int, data: DataConfig, rng: np.random.Generator
) -> tuple[dict, bool, bool]:
    """(example, whether it is an image, whether its text is dropped) of a row that reads ``example``, or an image."""
    is_image = latent_frames == 1
    if not is_image and images is not None and rng.random() < data.image_share:
        example, is_image = _drawn(images, rng), True
    return example, is_image, rng.random() < data.text_drop


def _drawn(examples: Any, rng: np.random.Generator) -> dict:
    return examples[int(rng.integers(len(examples)))]


class _WithReencoded:
    """Clips, and how each one's first latent frames are encoded again."""

    def __init__(self, clips: Any, reencoded: Any):
        self._clips, self._reencoded = clips, reencoded

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> dict:
        return self._clips[index] | {"reencoded": self._reencoded[index]["codes"]}


class EncodedBatches:
    """Batches of the language model's contract whose ids are made when they are needed, from clips of pixels."""

    def __init__(
        self,
        clips: Any,
        images: Any | None,
        data: DataConfig,
        loss: LossConfig,
        vocabulary: Vocabulary,
        *,
        encode: Callable[[np.ndarray], np.ndarray],
        text: TextTokenizer,
        latent_frames: int,
        length: int,
        batch_size: int,
        seed: int,
        rope: str = "1d",
        **process: int,
    ):
        """Describe the stream; the rows are those of ``language_model_batches`` on the cached ids of the same clips.

        Args:
            encode: from uint8 [b, t, h, w, 3] to ids [b, latent frames, h, w].
            text: for captions; all else as there.
        """

        def transform(example: dict, rng: np.random.Generator) -> dict:
            num_frames = len(example["video"])
            example, is_image, is_dropped = choose(example, images, latent_frames, data, rng)
            text_ids = np.full(data.max_text_ids, -1, np.int32)
            found = text.encode(example["caption"])[: data.max_text_ids]
            text_ids[: len(found)] = found
            # An image is the first frame of a clip that stands still: one shape for all rows.
            still = np.repeat(example["video"][-1:], num_frames - len(example["video"]), axis=0)
            video = np.concatenate([example["video"], still])
            return {"video": video, "text_ids": text_ids, "is_image": is_image, "is_dropped": is_dropped}

        self._examples = Batches(clips, transform, batch_size=batch_size, seed=seed, **readers(data), **process)
        self._layout = _Layout(data, loss, vocabulary, latent_frames, length, images, rope)
        self._encode = encode

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """Batches of step ``start_step``, ``start_step`` + 1, ..., each encoded while the one before is used."""
        # A thread of its own also keeps the tokenizer out of the training's mesh, which is set for each thread.
        with ThreadPoolExecutor(1) as thread:
            waiting = None
            for examples in self._examples.iterate(start_step):
                following = thread.submit(self._rows, examples)
                if waiting is not None:
                    yield waiting.result()
                waiting = following

    def _rows(self, examples: Batch) -> Batch:
        codes = self._encode(examples["video"])
        fields = (codes, examples["text_ids"], examples["is_image"], examples["is_dropped"])
        rows = [self._layout.encoded_row(*row) for row in zip(*fields, strict=True)]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
