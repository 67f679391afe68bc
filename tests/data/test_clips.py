"""Clips of listed media: where they are cut, what is passed over, what is counted, when a run stops."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from media import RATE, encode_image, encode_video

from loong_jax.data.bad_media import BadMedia
from loong_jax.data.clips import Clips, Medium
from loong_jax.video_file import VideoFile, read_video

pytestmark = pytest.mark.filterwarnings("ignore:a source.*bad media are passed over")
GOOD = [Medium(f"v{i}", encode_video(12, 40 * i), f"caption {i}") for i in range(3)]


def clips(media, bad=None, **options):
    options = dict(frame_size=16, num_frames=5, fps=RATE, num_examples=1000) | options
    return Clips(media, range(len(media)), bad or BadMedia("a source", 1.0), **options)


def brightness(video):
    return video.mean(axis=(1, 2, 3))


def test_an_example_is_a_function_of_its_index():
    source, again = clips(GOOD), clips(GOOD)
    starts = set()
    for index in (30, 0, 1, 2, 31, 3, 999):
        example = source[index]
        assert example["video"].shape == (5, 16, 16, 3) and example["video"].dtype == np.uint8
        assert example["caption"] == f"caption {index % 3}" and example["label"] == ()
        key, start = example["key"].split("#")
        assert key == f"v{index % 3}"
        expected = 40 * (index % 3) + 8 * (int(start) + np.arange(5))
        np.testing.assert_allclose(brightness(example["video"]), expected, atol=2)
        np.testing.assert_array_equal(example["video"], again[index]["video"])
        starts.add(start)
    assert len(starts) > 2
    with pytest.raises(IndexError):
        source[1000]


def test_a_part_of_a_video_is_all_that_is_seen(tmp_path):
    """Seconds 5 to 6 of a video of 10: frames 40 to 47, reached by seeking in a file and in memory."""
    content = encode_video(80)
    (tmp_path / "long.mp4").write_bytes(content)
    for where in (content, tmp_path / "long.mp4"):
        source = clips([Medium("long", where, "", 5.0, 6.0)], num_frames=3)
        seen = np.concatenate([brightness(source[index]["video"]) for index in range(30)])
        assert abs(seen.min() - 8 * (40 % 32)) <= 2 and abs(seen.max() - 8 * (47 % 32)) <= 2


@pytest.mark.parametrize("kind", [("mp4", "libx264"), ("avi", "mpeg4"), ("matroska", "libx264"), ("mov", "libx264")])
@pytest.mark.parametrize("start", [0.0, 1.9, 2.0, 2.5, 3.3, 7.24, 9.5])
@pytest.mark.parametrize("fps", [None, 8, 6.5, 3])
def test_seeking_changes_no_frame(kind, start, fps):
    content = encode_video(80, kind=kind[0], codec=kind[1])
    with VideoFile(content) as file:
        assert abs(file.duration - 10) < 0.2
    if fps is None:
        expected = read_video(content)[int(np.ceil(start * RATE - 0.05)) :]
    else:
        expected = read_video(content)[[int(i) for i in np.floor((np.arange(start, 9.99, 1 / fps) + 0.006) * RATE)]]
    found = read_video(content, start=start, fps=fps, num_frames=4)
    np.testing.assert_allclose(brightness(found), brightness(expected[:4]), atol=0.01)


def test_an_image_is_a_clip_of_one_frame_and_no_longer_one():
    media = [Medium("picture", encode_image(96), "gray")]
    np.testing.assert_array_equal(clips(media, num_frames=1)[0]["video"], np.full((1, 16, 16, 3), 96))
    with pytest.raises(ValueError, match="a source: 100 examples in a row cannot give a clip of 2 frames"):
        clips(media, num_frames=2)[0]


def test_bad_media_are_passed_over_counted_and_listed(tmp_path):
    bad = BadMedia("a source", 1.0, tmp_path / "deep" / "bad.jsonl")
    media = [
        *GOOD,
        *GOOD[1:],
        *GOOD[1:],
        Medium("short", encode_video(3), ""),
        Medium("cut", encode_video(12)[:200], ""),
        Medium("text", b"hello", ""),
        Medium("empty", b"", ""),
        Medium("missing", tmp_path / "missing.mp4", ""),
        Medium("dark", GOOD[0].content, ""),
        Medium("still", encode_video(1), ""),
    ]
    source = clips(media, bad, min_brightness=40, min_motion=1)
    again = clips(media, min_brightness=40, min_motion=1)
    with ThreadPoolExecutor(4) as threads:
        keys = list(threads.map(lambda index: source[index]["key"], range(100)))
    assert keys == [again[index]["key"] for index in range(100)]
    assert {key.split("#")[0] for key in keys} >= {"v1", "v2"}
    assert set(bad.counts) == {"too short", "unreadable", "black"}
    assert bad.counts["unreadable"] == 4 and bad.counts["too short"] == 2
    rows = [json.loads(line) for line in (tmp_path / "deep" / "bad.jsonl").read_text().splitlines()]
    assert {row["key"]: row["reason"] for row in rows}.items() >= {"short": "too short", "empty": "unreadable"}.items()
    assert len(rows) == sum(bad.counts.values())


def test_a_list_of_bad_media_that_cannot_be_written_stops_nothing():
    bad = BadMedia("a source", 1.0, Path("/dev/full"))
    media = [Medium("bad", b"no video", ""), Medium("worse", b"none", ""), GOOD[0]]
    with pytest.warns(UserWarning, match="/dev/full could not be written .No space left on device.: no more is listed"):
        assert [clips(media, bad)[index]["caption"] for index in range(3)] == ["caption 0"] * 3
    assert bad.counts == {"unreadable": 2}


def test_a_frozen_clip_is_passed_over():
    frozen = [Medium("frozen", encode_video(12, 90, step=0), ""), GOOD[1]]
    bad = BadMedia("a source", 1.0)
    assert all(clips(frozen, bad, min_motion=0.5)[index]["key"].startswith("v1") for index in range(6))
    assert bad.counts == {"frozen": 1}


def test_too_many_bad_media_stop_the_run():
    media = [Medium(f"bad{i}", b"no video", "") if i % 4 == 0 else GOOD[i % 3] for i in range(200)]
    source = clips(media, BadMedia("a source", 0.2))
    with pytest.raises(ValueError, match=r"a source: \d+ of the \d+ examples read so far are bad \(\d+ unreadable\)"):
        for index in range(200):
            source[index]
    short = [Medium(f"short{i}", encode_video(2), "") if i % 4 == 0 else GOOD[i % 3] for i in range(200)]
    for some, share in ((media, 0.3), (short, 0.0)):  # a short video is no damage
        source = clips(some, BadMedia("a source", share))
        assert len({source[index]["key"] for index in range(200)}) > 1


def test_frames_in_memory_are_sampled_by_time_cropped_and_resized():
    """Gray 24x56 frames at 4 a second, read at 8: each is seen twice, and of each the middle square."""
    frames = np.broadcast_to(np.arange(10, dtype=np.uint8)[:, None, None, None] * 20, (10, 24, 56, 1)).copy()
    frames[:, :, :12] = frames[:, :, 44:] = 255
    source = clips([Medium("array", frames, "", fps=4.0)], num_frames=6)
    for index in range(5):
        example = source[index]
        start = int(example["key"].split("#")[1])
        expected = 20 * ((start + np.arange(6)) // 2)
        np.testing.assert_array_equal(example["video"], np.broadcast_to(expected[:, None, None, None], (6, 16, 16, 3)))
    with pytest.raises(ValueError, match="a clip of 21 frames"):
        clips([Medium("array", frames, "", fps=4.0)], num_frames=21)[0]
    with pytest.raises(ValueError, match=r"100 examples in a row .*1 unreadable"):
        clips([Medium("array", frames.astype(np.float32), "")])[0]


def test_captions_are_needed_where_asked_and_must_be_text():
    captions = ("", "caf\ufffd", "a cat \ud83d")  # the last is half an emoji
    media = [GOOD[1], *(Medium(repr(caption), GOOD[0].content, caption) for caption in captions)]
    bad = BadMedia("a source", 1.0)
    assert {clips(media, bad, needs_caption=True)[i]["caption"] for i in range(8)} == {"caption 1"}
    assert bad.counts == {"no caption": 1, "caption is not UTF-8": 2}
    assert {clips(media)[i]["caption"] for i in range(8)} == {"", "caption 1"}


def test_the_first_bad_medium_is_said():
    with pytest.warns(UserWarning, match="another: bad media are passed over, first text .unreadable: "):
        clips([Medium("text", b"hello", ""), GOOD[0]], BadMedia("another", 1.0))[0]
