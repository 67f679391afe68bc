"""One row of the batch contract, entry by entry."""

import numpy as np
import pytest

from loong_jax.config import LossConfig
from loong_jax.data.sequences import build_sequence, pack_sequences, places, prompt_ids, static_length
from loong_jax.vocab import LatentGrid, Vocabulary

VOCABULARY = Vocabulary(num_text=100, num_video=16)
PAD, BEGIN_TEXT, END_TEXT, BEGIN_IMAGE, END_IMAGE, BEGIN_VIDEO, END_VIDEO, NULL_TEXT = range(116, 124)
CODES = np.arange(12, dtype=np.uint16).reshape(3, 2, 2)


def test_clip_row():
    row = build_sequence([5, 6], CODES, VOCABULARY, 20, LossConfig(early_frames=2, early_weight=0.5))
    video = list(range(100, 112))
    expected = {
        "tokens": [BEGIN_TEXT, 5, 6, END_TEXT, BEGIN_VIDEO, *video, END_VIDEO, PAD, PAD],
        "positions": [*range(18), 0, 0],
        "segment_ids": [1] * 18 + [0, 0],
        "loss_weights": [0] * 5 + [1.5] * 8 + [1] * 4 + [1] + [0, 0],
        "frame_ids": [-1] * 5 + [0] * 4 + [1] * 4 + [2] * 4 + [-1] * 3,
    }
    assert row.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(row[name], values, err_msg=name)
        assert row[name].dtype == (np.float32 if name == "loss_weights" else np.int32)


def test_image_row_has_its_own_markers_and_no_early_weight():
    row = build_sequence([5], CODES[:1], VOCABULARY, 9, LossConfig(early_frames=5, early_weight=3.0), is_image=True)
    np.testing.assert_array_equal(row["tokens"], [BEGIN_TEXT, 5, END_TEXT, BEGIN_IMAGE, 100, 101, 102, 103, END_IMAGE])
    np.testing.assert_array_equal(row["loss_weights"], [0, 0, 0, 0, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(row["frame_ids"], [-1, -1, -1, -1, 0, 0, 0, 0, -1])


def test_frames_that_are_given_are_read_and_not_predicted():
    loss = LossConfig(early_frames=2, early_weight=0.5)
    row, plain = (build_sequence([5, 6], CODES, VOCABULARY, 20, loss, num_given=given) for given in (1, 0))
    np.testing.assert_array_equal(row["loss_weights"], [0] * 9 + [1.5] * 4 + [1] * 4 + [1] + [0, 0])
    for name in row.keys() - {"loss_weights"}:
        np.testing.assert_array_equal(row[name], plain[name])


def test_null_text_and_empty_text():
    null = build_sequence(None, CODES, VOCABULARY, 17, LossConfig())
    np.testing.assert_array_equal(null["tokens"][:4], [BEGIN_TEXT, NULL_TEXT, END_TEXT, BEGIN_VIDEO])
    empty = build_sequence([], CODES, VOCABULARY, 17, LossConfig())
    np.testing.assert_array_equal(empty["tokens"][:3], [BEGIN_TEXT, END_TEXT, BEGIN_VIDEO])


@pytest.mark.parametrize("text_ids", [None, [], [1, 2, 3]])
@pytest.mark.parametrize("is_image", [False, True])
def test_the_sampler_starts_where_training_starts(text_ids, is_image):
    prompt = prompt_ids(text_ids, VOCABULARY, is_image=is_image)
    row = build_sequence(text_ids, CODES[:1], VOCABULARY, 16, LossConfig(), is_image)
    np.testing.assert_array_equal(row["tokens"][: len(prompt)], prompt)
    assert row["loss_weights"][len(prompt) - 1] == 0 and row["loss_weights"][len(prompt)] > 0


def test_every_weighted_token_is_a_target_of_the_training_head():
    row = build_sequence([99], CODES, VOCABULARY, 32, LossConfig())
    weighted = row["tokens"][row["loss_weights"] > 0]
    assert weighted.min() >= VOCABULARY.video_start and weighted.max() < VOCABULARY.size


def test_errors():
    build_sequence([1], CODES, VOCABULARY, 17, LossConfig())  # just fits
    with pytest.raises(ValueError, match="needs 17 places, but has 16"):
        build_sequence([1], CODES, VOCABULARY, 16, LossConfig())
    with pytest.raises(ValueError, match=r"Codes must lie in \[0, 16\); got 5 to 16"):
        build_sequence([1], CODES + 5, VOCABULARY, 20, LossConfig())
    with pytest.raises(ValueError, match="got -1 to"):
        build_sequence([1], CODES.astype(np.int32) - 1, VOCABULARY, 20, LossConfig())


def test_static_length_holds_the_longest_row():
    for num_codes, text in ((256, 64), (1280, 1), (4352, 188), (12, 0)):
        length = static_length(num_codes, text)
        assert length % 16 == 0 and 0 <= length - (num_codes + text + 4) < 16 or length == 4608
    assert static_length(4352, 64) == 4608 and static_length(12, 0, 4) == 64


def test_places_in_space():
    """(time, row, column): text along all three, a video's ids from where it starts, the end marker after all."""
    found = places(3, LatentGrid(2, 2, 4), "3d")
    video = [(3 + f, 3 + r, 3 + c) for f in range(2) for r in range(2) for c in range(4)]
    np.testing.assert_array_equal(found, [(0, 0, 0), (1, 1, 1), (2, 2, 2), *video, (7, 7, 7)])
    np.testing.assert_array_equal(places(3, LatentGrid(2, 2, 4), "1d"), np.arange(20))
    rows = [build_sequence([1], np.zeros((2, 2, 4), int), Vocabulary(50, 64), None, LossConfig(), rope="3d")] * 2
    packed = pack_sequences(rows, Vocabulary(50, 64), 48)["positions"]
    assert packed.shape == (48, 3)
    np.testing.assert_array_equal(packed[21:42], places(4, LatentGrid(2, 2, 4), "3d"))
