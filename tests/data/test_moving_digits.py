"""The embedded data set against its own description: determinism, geometry, captions and what is held out."""

import itertools

import numpy as np
import pytest
from sklearn.datasets import load_digits

from loong_jax.data.moving_digits import (
    COLORS,
    DIRECTIONS,
    WORDS,
    MovingDigits,
    Scene,
    canonical_caption,
    digit_images,
    held_out_triples,
    parse_caption,
)


def _box(frame: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(frame.max(-1))
    return rows.min(), rows.max(), columns.min(), columns.max()


def test_digit_images_are_split_within_each_class():
    images, labels = load_digits(return_X_y=True)
    expected = [np.flatnonzero(labels == digit)[::5] for digit in range(10)]
    test_images, test_labels = digit_images("test")
    assert len(test_labels) == sum(map(len, expected))
    np.testing.assert_array_equal(np.bincount(test_labels), [len(rows) for rows in expected])
    assert test_images.dtype == np.float32 and test_images.min() == 0 and test_images.max() == 1
    for digit, rows in enumerate(expected):
        np.testing.assert_array_equal(test_images[test_labels == digit].reshape(-1, 64), images[rows] / 16)
    train_images, _ = digit_images("train")
    assert len(train_images) + len(test_images) == 1797


def test_held_out_is_an_eighth_and_covers_everything():
    held_out = held_out_triples()
    assert len(held_out) == 30
    assert {s.digit for s in held_out} == set(range(10))
    assert {s.color for s in held_out} == set(COLORS)
    assert {s.direction for s in held_out} == set(DIRECTIONS)


@pytest.mark.parametrize("two_digit_share", [0.0, 1.0])
def test_splits_share_no_prompt(two_digit_share):
    held_out = held_out_triples()
    seen = {}
    for split in ("train", "test"):
        source = MovingDigits(split, 32, 1, two_digit_share)
        seen[split] = {scene for i in range(3000) for scene in source[i]["label"]}
    assert seen["test"] == held_out  # 3000 draws of 30, and of 210 below: all come
    everything = {Scene(*triple) for triple in itertools.product(range(10), COLORS, DIRECTIONS)}
    assert seen["train"] == everything - held_out


def test_examples_depend_on_seed_split_and_index_alone():
    first, again = MovingDigits("train", 32, 9), MovingDigits("train", 32, 9, num_examples=50)
    for index in (7, 0, 31):
        np.testing.assert_array_equal(first[index]["video"], again[index]["video"])
        assert first[index]["caption"] == again[index]["caption"]
        assert first[index]["key"] == f"train/{index}"
    other_seed = MovingDigits("train", 32, 9, seed=1)
    assert any(first[i]["label"] != other_seed[i]["label"] for i in range(4))


def test_longer_clips_begin_as_the_shorter_ones():
    short, long = MovingDigits("train", 32, 17, 0.5), MovingDigits("train", 32, 65, 0.5)
    for index in range(20):
        np.testing.assert_array_equal(short[index]["video"], long[index]["video"][:17])
        assert short[index]["caption"] == long[index]["caption"]


@pytest.mark.parametrize("frame_size", [32, 64])
def test_one_digit_moves_as_its_caption_says(frame_size):
    source = MovingDigits("train", frame_size, 120, 0.0)
    scale, travel = frame_size // 32, 16 * frame_size // 32
    for index in range(25):
        example = source[index]
        (scene,) = example["label"]
        video = example["video"]
        assert video.dtype == np.uint8 and video.shape == (120, frame_size, frame_size, 3)
        # Only the color's channels are lit, all alike, and brightly.
        for channel, lit in enumerate(COLORS[scene.color]):
            np.testing.assert_array_equal(video[..., channel], video.max(-1) * lit)
        assert video.max() > 200
        # No pixel of the digit ever leaves the frame: every frame shows the same picture.
        assert len(set(video.reshape(120, -1).sum(axis=1, dtype=np.int64).tolist())) == 1
        boxes = np.array([_box(frame) for frame in video])
        corner = boxes[:, [0, 2]]
        velocity = 2 * np.array(DIRECTIONS[scene.direction]) * scale
        np.testing.assert_array_equal(np.diff(corner[:5], axis=0), np.tile(velocity, (4, 1)))
        # Along the axis of motion it bounces: a triangle wave of the sprite's free travel; across, it stands still.
        axis = int(np.flatnonzero(velocity)[0])
        assert np.ptp(corner[:, axis]) == travel and np.ptp(corner[:, 1 - axis]) == 0
        np.testing.assert_array_equal(np.abs(np.diff(corner[:, axis])), 2 * scale)
        period = travel // scale  # there and back at two pixels a frame
        np.testing.assert_array_equal(corner[period:], corner[:-period])


def test_two_digits_differ_and_overlap_by_maximum():
    source = MovingDigits("train", 32, 65, 1.0)
    both = 0
    for index in range(60):
        example = source[index]
        first, second = example["label"]
        assert first.digit != second.digit and first.color != second.color
        # Where every lit color of a pixel is from one digit, the color's channels are alike.
        union = np.maximum(COLORS[first.color], COLORS[second.color])
        assert not example["video"][..., union == 0].any()
        only_first = np.array(COLORS[first.color]) & ~np.array(COLORS[second.color]) & 1
        only_second = np.array(COLORS[second.color]) & ~np.array(COLORS[first.color]) & 1
        if only_first.any() and only_second.any():
            lit_first = example["video"][..., only_first.argmax()] > 0
            lit_second = example["video"][..., only_second.argmax()] > 0
            both += (lit_first & lit_second).any()
            # Each digit moves on its own: its pixels are never darkened by the other.
            for lit, channel in ((lit_first, only_first.argmax()), (lit_second, only_second.argmax())):
                assert len(set(lit.sum(axis=(1, 2)).tolist())) == 1
                assert len(set(example["video"][..., channel].sum(axis=(1, 2), dtype=np.int64).tolist())) == 1
    assert both > 0


def test_two_digit_share_is_kept():
    source = MovingDigits("train", 32, 1, 0.2)
    share = np.mean([len(source[i]["label"]) == 2 for i in range(2000)])
    assert abs(share - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 2000)


def test_captions_name_color_and_direction_and_mostly_the_digit():
    source = MovingDigits("train", 32, 1, 0.4)
    shapes, canonical, words, left_out = {1: set(), 2: set()}, [], 0, []
    for index in range(1500):
        example = source[index]
        caption, scenes = example["caption"], example["label"]
        tokens = caption.replace(",", "").replace(":", "").split()
        shape = caption
        for scene in scenes:
            assert scene.direction in tokens and scene.color in tokens
            has_digit = str(scene.digit) in tokens or WORDS[scene.digit] in tokens
            assert has_digit or len(scenes) == 1
            if len(scenes) == 1:
                left_out.append(not has_digit)
            words += WORDS[scene.digit] in tokens
            for name in (scene.color, scene.direction, str(scene.digit), WORDS[scene.digit]):
                shape = shape.replace(f"{name}", "_")
        shapes[len(scenes)].add(shape)
        canonical.append(caption == canonical_caption(scenes))
    assert len(shapes[1]) >= 6 and len(shapes[2]) >= 3
    assert 1 / 3 <= np.mean(canonical) < 0.55
    assert words > 50
    assert abs(np.mean(left_out) - 0.3) < 0.06


def test_canonical_caption():
    scenes = (Scene(7, "red", "left"), Scene(3, "blue", "up"))
    assert canonical_caption(scenes[:1]) == "a red 7 moves left"
    assert canonical_caption(scenes) == "a red 7 moves left and a blue 3 moves up"


def test_the_plainest_captions_are_read_back():
    for index in range(50):
        scenes = MovingDigits("test", 32, 1, two_digit_share=0.5)[index]["label"]
        assert parse_caption(canonical_caption(scenes)) == scenes
    for other in ("", "a cat in the snow", "a red 7 moves", "a red 7 moves left and a cat", "a red 77 moves left"):
        assert parse_caption(other) == ()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="split='valid'"):
        MovingDigits("valid", 32, 1)
    with pytest.raises(ValueError, match="split='valid'"):
        digit_images("valid")
    with pytest.raises(ValueError, match="frame_size=40"):
        MovingDigits("train", 40, 1)
    with pytest.raises(IndexError):
        MovingDigits("train", 32, 1, num_examples=3)[3]
