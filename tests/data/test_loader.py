"""Batches as a function of (seed, step) alone."""

import itertools

import numpy as np
import pytest

from loong_jax.config import DataConfig, LossConfig
from loong_jax.data.lm_batches import language_model_batches
from loong_jax.data.loader import Batches, video_batches
from loong_jax.data.moving_digits import MovingDigits
from loong_jax.data.sequences import build_sequence
from loong_jax.data.text import TextTokenizer
from loong_jax.vocab import Vocabulary

VOCABULARY = Vocabulary(num_video=64)
TEXT = TextTokenizer()


def _numbered(example: int, rng: np.random.Generator) -> dict:
    return {"index": np.int32(example), "noise": rng.random(3)}


def _stream(seed=1, batch_size=4, num_threads=2, **process) -> Batches:
    return Batches(range(10), _numbered, batch_size=batch_size, seed=seed, num_threads=num_threads, **process)


def _take(batches: Batches, start: int, count: int) -> list[dict]:
    return list(itertools.islice(batches.iterate(start), count))


def _assert_same(left: list[dict], right: list[dict]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("start", [0, 1, 7])
def test_starting_at_a_step_is_the_same_stream(start):
    whole = _take(_stream(), 0, 10)
    _assert_same(_take(_stream(), start, 10 - start), whole[start:])


def test_threads_change_nothing_and_seeds_do():
    reference = _take(_stream(num_threads=1), 0, 5)
    _assert_same(_take(_stream(num_threads=4), 0, 5), reference)
    other = _take(_stream(seed=2), 0, 5)
    assert any((a["index"] != b["index"]).any() for a, b in zip(reference, other, strict=True))


def test_each_epoch_sees_every_example_once_in_another_order_with_other_noise():
    batches = _take(_stream(batch_size=5), 0, 4)
    index = np.concatenate([batch["index"] for batch in batches]).reshape(2, 10)
    noise = np.concatenate([batch["noise"] for batch in batches])
    np.testing.assert_array_equal(np.sort(index, axis=1), [range(10)] * 2)
    assert (index[0] != index[1]).any()
    assert len(np.unique(noise)) == noise.size


def test_processes_share_one_global_batch():
    whole = _take(_stream(batch_size=6), 0, 5)
    for count in (2, 3):
        parts = [_take(_stream(batch_size=6, process_index=i, process_count=count), 0, 5) for i in range(count)]
        joined = [
            {name: np.concatenate([part[name] for part in step]) for name in step[0]}
            for step in zip(*parts, strict=True)
        ]
        _assert_same(joined, whole)
    with pytest.raises(ValueError, match="batch_size 6 is not a multiple of the 4 processes"):
        _stream(batch_size=6, process_count=4)


def test_a_batch_may_be_one_row():
    rows = [int(batch["index"][0]) for batch in _take(_stream(batch_size=1), 0, 10)]
    assert sorted(rows) == list(range(10))


def test_video_batches():
    source = MovingDigits("train", 32, 5, num_examples=8)
    (batch,) = _take(video_batches(source, DataConfig(), batch_size=8, seed=0), 0, 1)
    assert batch.keys() == {"video"} and batch["video"].dtype == np.uint8
    shown = sorted(video.tobytes() for video in batch["video"])
    assert shown == sorted(source[i]["video"].tobytes() for i in range(8))


class _Cache:
    """Examples whose codes tell their index and kind."""

    def __init__(self, size: int, frames: int, offset: int):
        self.items = [
            {"codes": np.full((frames, 2, 2), offset + i, np.uint16), "text_ids": TEXT.encode(f"example {offset + i}")}
            for i in range(size)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        return self.items[index]


def _language_model_batches(data: DataConfig, latent_frames: int, batch_size: int = 64, images=True) -> Batches:
    return language_model_batches(
        _Cache(8, 5, 0),
        _Cache(8, 1, 32) if images else None,
        data,
        LossConfig(early_frames=2),
        VOCABULARY,
        latent_frames=latent_frames,
        length=40,
        batch_size=batch_size,
        seed=3,
    )


def test_rows_are_the_sequences_of_their_examples():
    data = DataConfig(text_drop=0.0)
    (batch,) = _take(_language_model_batches(data, 3, batch_size=8), 0, 1)
    clips = _Cache(8, 5, 0)
    seen = []
    for row in range(8):
        code = int(batch["tokens"][row][batch["frame_ids"][row] == 0][0]) - VOCABULARY.video_start
        seen.append(code)
        example = clips[code]
        expected = build_sequence(example["text_ids"], example["codes"][:3], VOCABULARY, 40, LossConfig(early_frames=2))
        for name, values in expected.items():
            np.testing.assert_array_equal(batch[name][row], values)
    assert sorted(seen) == list(range(8))


def test_shares_of_images_and_of_dropped_text():
    data = DataConfig(text_drop=0.25, image_share=0.5)
    batches = _take(_language_model_batches(data, 3), 0, 10)
    tokens = np.concatenate([batch["tokens"] for batch in batches])
    frames = np.concatenate([batch["frame_ids"] for batch in batches]).max(axis=1)
    is_image = (tokens == VOCABULARY.special("begin_image")).any(axis=1)
    dropped = (tokens == VOCABULARY.special("null_text")).any(axis=1)
    for share, rows in ((0.5, is_image), (0.25, dropped)):
        assert abs(rows.mean() - share) < 4 * np.sqrt(share * (1 - share) / 640)
    np.testing.assert_array_equal(frames, np.where(is_image, 0, 2))
    codes = np.where(tokens >= VOCABULARY.video_start, tokens, 10**6).min(axis=1) - VOCABULARY.video_start
    np.testing.assert_array_equal(codes >= 32, is_image)


def test_stage_one_reads_the_first_frame_as_an_image():
    (batch,) = _take(_language_model_batches(DataConfig(), 1, images=False), 0, 1)
    assert (batch["tokens"] == VOCABULARY.special("begin_image")).any(axis=1).all()
    assert not (batch["tokens"] == VOCABULARY.special("begin_video")).any()
    assert batch["frame_ids"].max() == 0 and batch["loss_weights"].max() == 1


def test_a_long_caption_is_cut():
    (batch,) = _take(_language_model_batches(DataConfig(text_drop=0.0, max_text_ids=2), 3), 0, 1)
    end = VOCABULARY.special("end_text")
    np.testing.assert_array_equal(np.argmax(batch["tokens"] == end, axis=1), 3)


def test_a_share_of_batches_is_single_frames_whatever_step_one_starts_at():
    videos, images = (MovingDigits("train", 32, frames, num_examples=8) for frames in (5, 1))
    batches = video_batches(videos, DataConfig(image_share=0.25), images=images, batch_size=2, seed=0)
    whole = _take(batches, 0, 200)
    frames = np.array([batch["video"].shape[1] for batch in whole])
    assert set(frames) == {1, 5} and abs((frames == 1).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 200)
    _assert_same(_take(batches, 150, 20), whole[150:170])
