"""Rows of the language model: from caches, from pixels, and packed."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest

from loong_jax.config import DataConfig, LossConfig
from loong_jax.config_dict import from_config_dict
from loong_jax.data.lm_batches import EncodedBatches, language_model_batches
from loong_jax.data.sequences import build_sequence, static_length
from loong_jax.data.text import TextTokenizer
from loong_jax.vocab import Vocabulary

VOCABULARY = Vocabulary(num_video=64)
TEXT = TextTokenizer()


class Ids:
    """Examples whose codes and captions tell their index; captions are 1 to ``longest`` ids."""

    def __init__(self, size: int, grid: tuple, offset: int = 0, longest: int = 9):
        self.size, self.grid, self.offset, self.longest = size, grid, offset, longest

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        text_ids = rng.integers(100, 200, rng.integers(1, self.longest + 1)).tolist()
        return {"codes": np.full(self.grid, self.offset + index % 32, np.uint16), "text_ids": text_ids}


def batches(clips, images, data, frames, codes_per_frame, batch_size=8, **options):
    length = static_length(frames * codes_per_frame, data.max_text_ids, max(data.pack, 1))
    return language_model_batches(
        clips,
        images,
        data,
        LossConfig(early_frames=2),
        VOCABULARY,
        latent_frames=frames,
        length=length,
        batch_size=batch_size,
        seed=3,
        **options,
    )


def segments(batch, row):
    """The sequences of a packed row, each as build_sequence lays it out."""
    for segment in range(1, batch["segment_ids"][row].max() + 1):
        inside = batch["segment_ids"][row] == segment
        yield {name: values[row][inside] for name, values in batch.items()}


def test_a_packed_row_is_its_sequences_one_after_the_other():
    data = DataConfig(text_drop=0.2, max_text_ids=12, pack=3, image_share=0.2)
    clips, images = Ids(64, (3, 2, 2)), Ids(64, (1, 2, 2), 32)
    stream = batches(clips, images, data, 3, 4).iterate()
    kinds, counts = set(), []
    for batch in itertools.islice(stream, 10):
        for row in range(8):
            found = list(segments(batch, row))
            counts.append([int(s["frame_ids"].max()) for s in found])
            for segment in found:
                codes = segment["tokens"][segment["frame_ids"] >= 0] - VOCABULARY.video_start
                is_image = VOCABULARY.special("begin_image") in segment["tokens"]
                assert is_image == (codes[0] >= 32) and (codes == codes[0]).all()
                text = segment["tokens"][1 : np.argmax(segment["tokens"] == VOCABULARY.special("end_text"))]
                text_ids = None if text[0] == VOCABULARY.special("null_text") else text.tolist()
                expected = build_sequence(
                    text_ids,
                    codes.reshape(-1, 2, 2),
                    VOCABULARY,
                    len(segment["tokens"]),
                    LossConfig(early_frames=2),
                    is_image,
                )
                for name in ("tokens", "positions", "loss_weights", "frame_ids"):
                    np.testing.assert_array_equal(segment[name], expected[name])
                kinds.add((is_image, text_ids is None))
            padding = batch["segment_ids"][row] == 0
            assert (batch["tokens"][row][padding] == VOCABULARY.special("pad")).all()
            assert not batch["loss_weights"][row][padding].any() and (batch["frame_ids"][row][padding] == -1).all()
    assert kinds == set(itertools.product((False, True), repeat=2))
    clip_rows = [kinds for kinds in counts if 2 in kinds]
    assert all(kinds[:3] == [2, 2, 2] and not any(kinds[3:]) for kinds in clip_rows)
    assert 0.05 < 1 - len(clip_rows) / len(counts) < 0.4


@pytest.mark.parametrize("pack", [0, 2])
def test_a_share_of_the_clips_starts_as_rounds_do(pack):
    data = DataConfig(text_drop=0.0, max_text_ids=12, image_share=0.2, pack=pack, reencoded_share=0.3)
    clips, images, again = Ids(64, (3, 2, 2)), Ids(64, (1, 2, 2), 32), Ids(64, (2, 2, 2), 32)
    found = []
    for batch in itertools.islice(batches(clips, images, data, 3, 4, reencoded=again).iterate(), 40):
        for row in range(8):
            for segment in segments(batch, row):
                codes = segment["tokens"][segment["frame_ids"] >= 0].reshape(-1, 4) - VOCABULARY.video_start
                weights = segment["loss_weights"][segment["frame_ids"] >= 0].reshape(-1, 4)
                assert (codes == codes[:, :1]).all() and (weights == weights[:, :1]).all()
                if len(codes) == 1:
                    assert codes[0, 0] >= 32 and weights[0, 0] == 1
                    continue
                last = codes[2, 0]
                is_again = bool(codes[0, 0] >= 32)
                assert codes[:, 0].tolist() == ([32 + last] * 2 + [last] if is_again else [last] * 3)
                assert weights[:, 0].tolist() == ([0, 0, 1] if is_again else [2, 2, 1])
                found.append(is_again)
    assert 0.2 < np.mean(found) < 0.4


def test_every_clip_is_in_one_packed_row_an_epoch():
    data = DataConfig(text_drop=0.0, max_text_ids=12, pack=4)
    stream = batches(Ids(32, (3, 2, 2)), Ids(32, (1, 2, 2), 32), data, 3, 4, batch_size=4).iterate()
    for _ in range(3):
        rows = [
            segment for batch in itertools.islice(stream, 2) for row in range(4) for segment in segments(batch, row)
        ]
        clips = [row["tokens"][row["frame_ids"] == 0][0] for row in rows if row["frame_ids"].max() == 2]
        assert sorted(np.array(clips) - VOCABULARY.video_start) == list(range(32))


def job_of(stage):
    path = Path(__file__).parents[2] / "configs" / f"{stage}.py"
    spec = importlib.util.spec_from_file_location(stage, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return from_config_dict(module.get_config())


@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
def test_padding_is_under_five_percent_at_full_size(stage):
    """Captions of 1 to 35 ids, 256 ids a latent frame, as the configs lay them out."""
    data = job_of(stage).data
    frames = 1 + (data.num_frames - 1) // 4
    images = Ids(1000, (1, 16, 16), 32, 35)
    clips = images if frames == 1 else Ids(1000, (frames, 16, 16), 0, 35)
    padding = [
        np.mean(batch["segment_ids"] == 0)
        for batch in itertools.islice(batches(clips, images, data, frames, 256).iterate(), 6)
    ]
    assert np.mean(padding) < 0.05, padding


def test_batches_from_pixels_are_those_from_the_cache():
    """A stand-in tokenizer whose ids are the brightness of every fourth frame."""

    class Pixels(Ids):
        def __getitem__(self, index):
            frames = 1 + 4 * (self.grid[0] - 1)
            video = np.full((frames, 8, 8, 3), self.offset + index % 32, np.uint8)
            return {"video": video, "caption": f"clip {index}", "key": "", "label": ()}

    class Cached(Ids):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"text_ids": TEXT.encode(f"clip {index}")}

    def encode(video):
        return np.broadcast_to(video[:, ::4, :1, :1, 0], (*video[:, ::4].shape[:2], 2, 2))

    data = DataConfig(text_drop=0.3, max_text_ids=5, image_share=0.3)
    sizes = ((32, (3, 2, 2)), (32, (1, 2, 2), 32))
    for frames in (3, 1):
        if frames == 3:
            cached = batches(*(Cached(*size) for size in sizes), data, frames, 4)
        else:
            cached = batches(Cached(*sizes[1]), None, data, frames, 4)
        options = dict(latent_frames=frames, length=static_length(frames * 4, 5), batch_size=8, seed=3)
        clips, images = [Pixels(*size) for size in sizes] if frames == 3 else (Pixels(*sizes[1]), None)
        loss = LossConfig(early_frames=2)
        encoded = EncodedBatches(clips, images, data, loss, VOCABULARY, encode=encode, text=TEXT, **options)
        for left, right in itertools.islice(zip(cached.iterate(2), encoded.iterate(2), strict=True), 4):
            assert left.keys() == right.keys()
            for name in left:
                np.testing.assert_array_equal(left[name], right[name])


def test_rows_have_room_for_the_longest_captions():
    assert static_length(1280, 64) == 1360 and static_length(1280, 64, 4) == 5632
    data = DataConfig(text_drop=0.0, max_text_ids=9, pack=3)
    (batch,) = itertools.islice(batches(Ids(64, (3, 2, 2), longest=40), None, data, 3, 4).iterate(), 1)
    assert (batch["segment_ids"].max(axis=1) == 3).all()
