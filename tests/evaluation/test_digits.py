"""The judge is fair: near 1 on true videos it never saw, still good on damaged ones, near chance or 0 on wrong ones."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from loong_jax.data.moving_digits import COLORS, DIRECTIONS, MovingDigits, Scene
from loong_jax.evaluation.digits import DigitReader, digit_benchmark, digits_by_window

NAMES = ("digit_first", "color_first", "direction_first", "digit_last", "color_last")


@pytest.fixture(scope="module")
def reader():
    return DigitReader()


def held_out(count, frame_size=32, num_frames=65, two_digit_share=0.0):
    source = MovingDigits("test", frame_size, num_frames, two_digit_share)
    examples = [source[index] for index in range(count)]
    return np.stack([example["video"] for example in examples]), [example["label"] for example in examples]


@pytest.fixture(scope="module")
def singles():
    return held_out(100)


def shares(videos, scenes):
    result = digit_benchmark(videos, scenes)
    return [result[name] for name in NAMES]


def at_least(values, floors):
    return all(np.array(values) >= floors)


def test_true_videos_are_read(singles):
    assert at_least(shares(*singles), [0.95, 1, 1, 0.95, 1])


def test_true_videos_with_two_digits_are_read():
    assert at_least(shares(*held_out(50, two_digit_share=1.0)), [0.85, 0.95, 0.95, 0.85, 0.95])


def test_larger_frames_are_read():
    assert at_least(shares(*held_out(30, frame_size=96, num_frames=17)), [0.9, 1, 1, 0.9, 1])


@pytest.mark.parametrize("damage", ["blur", "noise", "faint", "shift"])
def test_damaged_videos_are_read(singles, damage):
    videos, scenes = singles[0][:50], singles[1][:50]
    rng = np.random.default_rng(0)
    damaged = {
        "blur": lambda: ndimage.gaussian_filter(videos, (0, 0, 1, 1, 0)),
        "noise": lambda: np.clip(videos + rng.normal(0, 15, videos.shape), 0, 255).astype(np.uint8),
        "faint": lambda: videos // 2,
        "shift": lambda: ndimage.shift(videos, (0, 0, 0.5, -0.5, 0), order=1),
    }[damage]()
    assert at_least(shares(damaged, scenes), [0.9, 0.98, 0.98, 0.9, 0.98])


def test_wrong_digits_directions_and_colors_are_told(singles):
    videos, scenes = singles[0][:40], singles[1][:40]
    digit, direction, color = ([] for _ in range(3))
    for (scene,) in scenes:
        digit.append((dataclasses.replace(scene, digit=(scene.digit + 5) % 10),))
        opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}[scene.direction]
        direction.append((dataclasses.replace(scene, direction=opposite),))
        other = list(COLORS)[(list(COLORS).index(scene.color) + 1) % len(COLORS)]
        color.append((dataclasses.replace(scene, color=other),))
    assert shares(videos, digit)[0] <= 0.05
    assert shares(videos, direction)[2] == 0
    assert shares(videos, color) == [0, 0, 0, 0, 0]


def test_random_prompts_are_right_by_chance(singles):
    videos, scenes = singles
    rng = np.random.default_rng(0)
    guesses = [(Scene(int(rng.integers(10)), scene.color, str(rng.choice(list(DIRECTIONS)))),) for (scene,) in scenes]
    digit, _, direction, *_ = shares(videos, guesses)
    assert 0.02 <= digit <= 0.2 and 0.12 <= direction <= 0.38  # chance: 1/10 and 1/4


def test_one_digit_where_two_were_asked_for_is_wrong(singles):
    videos, scenes = singles[0][:20], singles[1][:20]
    other = [Scene((scene.digit + 1) % 10, "red" if scene.color != "red" else "blue", "left") for (scene,) in scenes]
    asked = [(*wanted, second) for wanted, second in zip(scenes, other, strict=True)]
    assert shares(videos, asked) == [0, 0, 0, 0, 0]


def test_a_digit_too_many_is_a_wrong_color():
    videos, scenes = held_out(20, two_digit_share=1.0)
    assert digit_benchmark(videos, [wanted[:1] for wanted in scenes])["color_first"] <= 0.1


def test_a_digit_that_stands_still_has_no_direction(singles):
    videos, scenes = singles[0][:10], singles[1][:10]
    assert shares(videos[:, :1].repeat(65, 1), scenes)[2] == 0


@pytest.mark.parametrize("kind", ["black", "white", "noise", "negative"])
def test_videos_of_nothing_are_wrong(singles, kind):
    videos, scenes = singles[0][:20], singles[1][:20]
    nothing = {
        "black": np.zeros_like(videos),
        "white": np.full_like(videos, 255),
        "noise": np.random.default_rng(0).integers(0, 256, videos.shape, np.uint8),
        "negative": 255 - videos,
    }[kind]
    assert shares(nothing, scenes) == [0, 0, 0, 0, 0]


def test_first_and_last_window_are_judged_apart(singles):
    videos, scenes = singles[0][:20], singles[1][:20]
    right, gone = slice(0, 3), slice(3, 5)
    values = shares(np.concatenate([videos, np.zeros_like(videos)], 1), scenes)
    assert at_least(values[right], [0.9, 1, 1]) and values[gone] == [0, 0]


def test_per_video_table_agrees_with_the_shares(singles):
    videos, scenes = singles[0][:20], singles[1][:20]
    result = digit_benchmark(videos, scenes)
    assert result["num_videos"] == len(result["videos"]) == 20
    assert result["videos"][0]["scenes"] == str(scenes[0][0])
    for name in NAMES:
        assert result[name] == sum(record[name] for record in result["videos"]) / 20


def test_reading_is_deterministic(reader, singles):
    videos, scenes = singles[0][:5], singles[1][:5]
    other = DigitReader()
    assert [reader.read(*pair) for pair in zip(videos, scenes, strict=True)] == [
        other.read(*pair) for pair in zip(videos, scenes, strict=True)
    ]


def test_bad_input_is_one_clear_error(reader):
    scenes = (Scene(7, "red", "left"),)
    with pytest.raises(ValueError, match="float32 video of 32 x 32 pixels: moving digits are uint8"):
        reader.read(np.zeros((9, 32, 32, 3), np.float32), scenes)
    with pytest.raises(ValueError, match="uint8 video of 40 x 40 pixels: .* multiple of 32"):
        reader.read(np.zeros((9, 40, 40, 3), np.uint8), scenes)
    with pytest.raises(ValueError, match="Got 1 videos and the scenes of 2"):
        digit_benchmark(np.zeros((1, 9, 32, 32, 3), np.uint8), [scenes, scenes])


def test_every_second_is_judged_by_itself(singles):
    videos, scenes = singles[0][:20], singles[1][:20]
    results = [digits_by_window(video, wanted) for video, wanted in zip(videos, scenes, strict=True)]
    assert {len(values) for result in results for values in result.values()} == {10}
    for name, floor in {"digit": 0.9, "color": 1, "axis": 0.95}.items():
        assert np.mean([result[name] for result in results]) >= floor
    assert {len(values) for values in digits_by_window(videos[0], scenes[0], seconds=4.0).values()} == {2}
    broken = videos[0].copy()
    broken[26:39] = 0  # seconds 4 and 5
    result = digits_by_window(broken, scenes[0])
    assert result["color"] == [second not in (4, 5) for second in range(10)]
    assert not any(result["digit"][4:6]) and not any(result["axis"][4:6])


def test_the_axis_is_that_of_the_direction(singles):
    videos, scenes = singles[0][:10], singles[1][:10]
    for video, wanted in zip(videos, scenes, strict=True):
        turned = np.swapaxes(video, 1, 2)
        assert np.mean(digits_by_window(turned, wanted)["axis"]) <= 0.1
        assert not any(digits_by_window(video[:1].repeat(65, 0), wanted)["axis"])


def test_a_short_video_has_one_second(singles):
    assert len(digits_by_window(singles[0][0][:4], singles[1][0])["digit"]) == 1
    assert len(digits_by_window(singles[0][0][:12], singles[1][0])["digit"]) == 1
    assert len(digits_by_window(singles[0][0][:13], singles[1][0])["digit"]) == 2
