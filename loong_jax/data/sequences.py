"""One caption and one clip's codes -> one row of the batch contract.

A row is five arrays [length]: tokens, positions (or [length, 3], see ``places``), segment_ids (0 = padding),
loss_weights and frame_ids (latent frame, -1 where it is no video id). Entry t describes token t itself:
loss_weights[t] is the weight of predicting tokens[t] from the tokens before it.
"""

import numpy as np
from jaxtyping import Float, Int

from loong_jax.config import LossConfig
from loong_jax.vocab import NUM_MARKERS, LatentGrid, Vocabulary

Row = dict[str, Int[np.ndarray, "length *axes"] | Float[np.ndarray, " length"]]


def places(num_prompt: int, grid: LatentGrid, rope: str) -> Int[np.ndarray, "n *axes"]:
    """Positions of a sequence of ``num_prompt`` ids, the ids of ``grid`` and the end marker, for ``model.rope``.

    "1d" counts. "3d" is (time, row, column): along all three for text and markers, and from the place where the video
    starts for its ids; the end marker follows the largest of them.
    """
    if rope == "1d":
        return np.arange(num_prompt + grid.num_ids + 1, dtype=np.int32)
    sizes = (grid.frames, grid.height, grid.width)
    text = np.repeat(np.arange(num_prompt)[:, None], 3, axis=1)
    video = num_prompt + np.indices(sizes).reshape(3, -1).T
    end = np.full((1, 3), num_prompt + max(sizes))
    return np.concatenate([text, video, end]).astype(np.int32)


def prompt_ids(text_ids: list[int] | None, vocabulary: Vocabulary, *, is_image: bool = False) -> list[int]:
    """The ids up to where the video starts: begin_text, text, end_text, begin_video; ``None`` is the null text."""
    text = [vocabulary.special("null_text")] if text_ids is None else list(text_ids)
    begin = vocabulary.special("begin_image" if is_image else "begin_video")
    return [vocabulary.special("begin_text"), *text, vocabulary.special("end_text"), begin]


def build_sequence(
    text_ids: list[int] | None,
    codes: Int[np.ndarray, "frames h w"],
    vocabulary: Vocabulary,
    length: int | None,
    loss: LossConfig,
    is_image: bool = False,
    rope: str = "1d",
    num_given: int = 0,
) -> Row:
    """Lay out text, codes and markers, padded to ``length``; with ``None`` as long as they are.

    A code of latent frame i has weight 1 + early_weight if i < early_frames, else 1 (Loong, section 3.3); an image's
    codes and the end marker have weight 1; text, the other markers, padding and the first ``num_given`` latent frames,
    which are read and not predicted, have 0.

    Raises:
        ValueError: the sequence is longer than ``length``, or a code is outside the vocabulary.
    """
    if codes.min() < 0 or codes.max() >= vocabulary.num_video:
        raise ValueError(
            f"Codes must lie in [0, {vocabulary.num_video}); got {codes.min()} to {codes.max()}: "
            "is this cache from another tokenizer?"
        )
    prompt = prompt_ids(text_ids, vocabulary, is_image=is_image)
    start, stop = len(prompt), len(prompt) + codes.size
    length = stop + 1 if length is None else length
    if stop + 1 > length:
        raise ValueError(
            f"A sequence of {len(prompt)} text and marker ids and {codes.size} video ids needs {stop + 1} places, but "
            f"has {length}: raise model.max_length or shorten the clip."
        )
    frame_ids = np.repeat(np.arange(len(codes)), codes[0].size)
    early = 0.0 if is_image else loss.early_weight
    row = _empty_row(vocabulary, length, rope)
    row["tokens"][:start] = prompt
    row["tokens"][start:stop] = codes.reshape(-1)
    row["tokens"][start:stop] += vocabulary.video_start
    row["tokens"][stop] = vocabulary.special("end_image" if is_image else "end_video")
    row["positions"][: stop + 1] = places(start, LatentGrid(*codes.shape), rope)
    row["segment_ids"][: stop + 1] = 1
    row["frame_ids"][start:stop] = frame_ids
    row["loss_weights"][start:stop] = np.where(frame_ids < loss.early_frames, 1 + early, 1) * (frame_ids >= num_given)
    row["loss_weights"][stop] = 1
    return row


def pack_sequences(rows: list[Row], vocabulary: Vocabulary, length: int) -> Row:
    """Several sequences, of any length each, as segments 1, 2, ... of one row.

    Raises:
        ValueError: together they are longer than ``length``.
    """
    used = sum(len(row["tokens"]) for row in rows)
    if used > length:
        raise ValueError(f"{len(rows)} sequences of {used} ids do not fit in a row of {length}.")
    packed = _empty_row(vocabulary, length, "3d" if rows[0]["positions"].ndim == 2 else "1d")
    start = 0
    for segment, row in enumerate(rows, start=1):
        stop = start + len(row["tokens"])
        for name, values in row.items():
            packed[name][start:stop] = values * segment if name == "segment_ids" else values
        start = stop
    return packed


def _empty_row(vocabulary: Vocabulary, length: int, rope: str) -> Row:
    return {
        "tokens": np.full(length, vocabulary.special("pad"), np.int32),
        "positions": np.zeros((length, 3) if rope == "3d" else length, np.int32),
        "segment_ids": np.zeros(length, np.int32),
        "loss_weights": np.zeros(length, np.float32),
        "frame_ids": np.full(length, -1, np.int32),
    }


def static_length(num_codes: int, max_text_ids: int, count: int = 1) -> int:
    """The common length of a batch's rows with room for ``count`` sequences.

    It is a multiple of 16, and above 2,048 of 512, into which attention kernels cut it evenly.
    """
    needed = count * (num_codes + max_text_ids + NUM_MARKERS)
    multiple = 16 if needed <= 2048 else 512
    return -(-needed // multiple) * multiple
