"""One caption and one clip's codes -> one row of the batch contract.

A row is five arrays [length]: tokens, positions, segment_ids (0 = padding), loss_weights and frame_ids (latent frame,
-1 where it is no video id). Entry t describes token t itself: loss_weights[t] is the weight of predicting tokens[t]
from the tokens before it.
"""

import numpy as np
from jaxtyping import Float, Int

from loong_jax.config import LossConfig
from loong_jax.vocab import NUM_MARKERS, Vocabulary

Row = dict[str, Int[np.ndarray, " length"] | Float[np.ndarray, " length"]]


def prompt_ids(text_ids: list[int] | None, vocabulary: Vocabulary, *, is_image: bool = False) -> list[int]:
    """The ids up to where the video starts: begin_text, text, end_text, begin_video; ``None`` is the null text."""
    text = [vocabulary.special("null_text")] if text_ids is None else list(text_ids)
    begin = vocabulary.special("begin_image" if is_image else "begin_video")
    return [vocabulary.special("begin_text"), *text, vocabulary.special("end_text"), begin]


def build_sequence(
    text_ids: list[int] | None,
    codes: Int[np.ndarray, "frames h w"],
    vocabulary: Vocabulary,
    length: int,
    loss: LossConfig,
    is_image: bool = False,
) -> Row:
    """Lay out text, codes and markers, padded to ``length``.

    A code of latent frame i has weight 1 + early_weight if i < early_frames, else 1 (Loong, section 3.3); an image's
    codes and the end marker have weight 1; text, the other markers and padding have 0.

    Raises:
        ValueError: the sequence is longer than ``length``, or a code is outside the vocabulary.
    """
    if codes.min() < 0 or codes.max() >= vocabulary.num_video:
        raise ValueError(
            f"Codes must lie in [0, {vocabulary.num_video}); got {codes.min()} to {codes.max()}: "
            "is this cache from another tokenizer?"
        )
    prompt = prompt_ids(text_ids, vocabulary, is_image=is_image)
    end = vocabulary.special("end_image" if is_image else "end_video")
    num_frames, ids_per_frame = len(codes), codes[0].size
    tokens = [*prompt, *(vocabulary.video_start + codes.astype(np.int32)).reshape(-1), end]
    used = len(tokens)
    if used > length:
        raise ValueError(
            f"A sequence of {len(prompt)} text and marker ids and {codes.size} video ids needs {used} places, but "
            f"has {length}: raise model.max_length or shorten the clip."
        )
    frame_ids = np.repeat(np.arange(num_frames), ids_per_frame)
    early = 0.0 if is_image else loss.early_weight
    weights = np.where(frame_ids < loss.early_frames, 1 + early, 1)
    start = len(prompt)
    row = {
        "tokens": np.full(length, vocabulary.special("pad"), np.int32),
        "positions": np.zeros(length, np.int32),
        "segment_ids": np.zeros(length, np.int32),
        "loss_weights": np.zeros(length, np.float32),
        "frame_ids": np.full(length, -1, np.int32),
    }
    row["tokens"][:used] = tokens
    row["positions"][:used] = np.arange(used)
    row["segment_ids"][:used] = 1
    row["frame_ids"][start : used - 1] = frame_ids
    row["loss_weights"][start : used - 1] = weights
    row["loss_weights"][used - 1] = 1
    return row


def pack_sequences(rows: list[Row], vocabulary: Vocabulary, length: int) -> Row:
    """Several sequences, of any length each, as segments 1, 2, ... of one row.

    Raises:
        ValueError: together they are longer than ``length``.
    """
    used = sum(len(row["tokens"]) for row in rows)
    if used > length:
        raise ValueError(f"{len(rows)} sequences of {used} ids do not fit in a row of {length}.")
    numbered = [row | {"segment_ids": row["segment_ids"] * segment} for segment, row in enumerate(rows, start=1)]
    padding = {"tokens": vocabulary.special("pad"), "frame_ids": -1}
    return {
        name: np.pad(
            np.concatenate([row[name] for row in numbered]), (0, length - used), constant_values=padding.get(name, 0)
        )
        for name in rows[0]
    }


def static_length(num_codes: int, max_text_ids: int, count: int = 1) -> int:
    """The common length of a batch's rows with room for ``count`` sequences, rounded up to a multiple of 16."""
    return -(-count * (num_codes + max_text_ids + NUM_MARKERS) // 16) * 16
