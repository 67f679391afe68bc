"""A folder of videos: clips, captions, splits, and what is wrong with a folder, named."""

import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest

from loong_jax.config import DataConfig
from loong_jax.data.moving_digits import MovingDigits
from loong_jax.data.sources import make_source
from loong_jax.data.video_folder import VideoFolder
from loong_jax.video import read_video

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "big_buck_bunny_128"
FILM = Path(os.environ.get("LOONG_TEST_VIDEO_DIR", SHARED))
RATE = 8


def _write(path: Path, frames: int, first: int = 0, codec: str = "libx264", pixels: str = "yuv420p") -> None:
    """Gray frames of brightness ``first``, ``first`` + 8, ... at 8 frames per second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.height = stream.width = 32
        stream.pix_fmt = pixels
        for value in first + 8 * np.arange(frames):
            frame = np.full((32, 32, 3), value, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _folder(path: Path, count: int = 4, frames: int = 12) -> Path:
    for i in range(count):
        _write(path / f"v{i}.mp4", frames, first=40 * i)
    return path


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> Path:
    return _folder(tmp_path_factory.mktemp("four"))


def _file(example: dict) -> str:
    return example["key"].split("#")[0]


def test_clips_are_deterministic_and_consecutive(four):
    source, again = (VideoFolder(four, "train", 16, 5, RATE, 4) for _ in range(2))
    starts = set()
    for index in (30, 0, 1, 2, 3, 4, 5, 31):
        example = source[index]
        video = example["video"]
        assert video.shape == (5, 16, 16, 3) and video.dtype == np.uint8
        assert example["caption"] == "" and example["label"] == ()
        np.testing.assert_array_equal(video, again[index]["video"])
        # Frame t of the clip is frame start + t of file 1, 2 or 3: their brightness says so.
        file, start = 1 + index % 3, int(example["key"].split("#")[1])
        assert _file(example) == f"v{file}.mp4"
        np.testing.assert_allclose(video.mean(axis=(1, 2, 3)), 40 * file + 8 * (start + np.arange(5)), atol=2)
        starts.add(start)
    assert len(starts) > 2


def test_fps_samples_by_time(four):
    video = VideoFolder(four, "test", 16, 3, 2.0, 4)[0]["video"]  # every fourth frame: all 12 are needed
    np.testing.assert_allclose(video.mean(axis=(1, 2, 3)), [0, 32, 64], atol=2)


def test_splits_are_apart_and_stay_when_clips_get_longer(tmp_path):
    for i in range(8):
        _write(tmp_path / "deep" / f"v{i}.mp4", 6 if i % 3 == 0 else 20)
    shown = {}
    for num_frames in (1, 16):
        for split in ("train", "test"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                source = VideoFolder(tmp_path, split, 16, num_frames, RATE, 4)
            shown[num_frames, split] = {_file(source[i]) for i in range(16)}
    names = {f"deep/v{i}.mp4" for i in range(8)}
    assert shown[1, "test"] == {"deep/v0.mp4", "deep/v4.mp4"} and shown[1, "train"] == names - shown[1, "test"]
    assert shown[16, "test"] == {"deep/v4.mp4"} and shown[16, "train"] == {f"deep/v{i}.mp4" for i in (1, 2, 5, 7)}


def test_short_and_broken_files_are_left_out_with_one_counted_warning(four, tmp_path):
    shutil.copytree(four, tmp_path, dirs_exist_ok=True)
    _write(tmp_path / "short.mp4", 4)
    (tmp_path / "zero.mp4").write_bytes(b"")
    (tmp_path / "text.webm").write_text("not a video")
    with pytest.warns(UserWarning, match="3 of 7 files") as caught:
        source = VideoFolder(tmp_path, "train", 16, 10, RATE, 100)
    assert len(caught) == 1 and source.num_skipped == 3
    assert {_file(source[i]) for i in range(8)} <= {f"v{i}.mp4" for i in range(4)}


def test_no_usable_file_says_what_was_found(four, tmp_path):
    with pytest.raises(ValueError, match=r"no clip of 100 frames at 8 .* of 4 files 0 are unreadable.* 1.50 s"):
        VideoFolder(four, "train", 16, 100, RATE)
    with pytest.raises(ValueError, match="nowhere does not exist"):
        VideoFolder(tmp_path / "nowhere", "train", 16, 1, RATE)
    with pytest.raises(ValueError, match="holds no video: looked for .mp4"):
        VideoFolder(tmp_path, "train", 16, 1, RATE)
    with pytest.raises(ValueError, match="split='valid'"):
        VideoFolder(four, "valid", 16, 1, RATE)


def test_a_clip_of_exactly_the_file_fits_and_one_frame_more_does_not(four):
    example = VideoFolder(four, "test", 16, 12, RATE, 4)[0]
    np.testing.assert_allclose(example["video"].mean(axis=(1, 2, 3)), 8 * np.arange(12), atol=2)
    with pytest.raises(ValueError, match="holds no clip of 13 frames"):
        VideoFolder(four, "test", 16, 13, RATE, 4)


def test_one_video_serves_both_splits_with_a_warning(tmp_path):
    _folder(tmp_path, count=1)
    assert _file(VideoFolder(tmp_path, "test", 16, 3, RATE)[0]) == "v0.mp4"
    with pytest.warns(UserWarning, match="no video for the train split"):
        assert _file(VideoFolder(tmp_path, "train", 16, 3, RATE)[0]) == "v0.mp4"


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [("a.avi", "mpeg4", "yuv420p"), ("a.mkv", "libx264", "yuv420p"), ("a.webm", "libvpx-vp9", "yuv420p")]
    + [("a.mov", "libx264", "yuv420p"), ("A.GIF", "gif", "gray8")],
)
def test_containers(tmp_path, name, codec, pixels):
    _write(tmp_path / name, 12, codec=codec, pixels=pixels)
    values = VideoFolder(tmp_path, "test", 16, 12, RATE)[0]["video"].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(values, 8 * np.arange(12), atol=3.9)


def test_an_mkv_with_longer_sound_is_as_long_as_its_picture(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream, sound = container.add_stream("libx264", rate=RATE), container.add_stream("aac", rate=8000)
        stream.height = stream.width = 32
        for value in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 8 * value, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        for _ in range(40):  # 5 s
            chunk = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            chunk.sample_rate = 8000
            container.mux(sound.encode(chunk))
        container.mux(stream.encode())
        container.mux(sound.encode())
    assert VideoFolder(tmp_path, "test", 16, 8, RATE)[0]["video"].shape[0] == 8
    with pytest.raises(ValueError, match="longest lasts 1.00 s"):
        VideoFolder(tmp_path, "test", 16, 9, RATE)


def _captions(folder: Path) -> dict[str, str]:
    source = VideoFolder(folder, "train", 16, 1, RATE, 100)
    return {_file(source[i]): source[i]["caption"] for i in range(3)}


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (
            "metadata.jsonl",
            '{"file_name": "v1.mp4", "text": "one"}\n\n{"file_name": "v2.mp4", "caption": "t\u2028w, o"}\n',
        ),
        ("metadata.csv", 'file_name,text\nv1.mp4,one\nv2.mp4,"t\u2028w, o"\n'),
        ("from_a_spreadsheet.csv", '\ufeffcaption,file_name\r\none,v1.mp4\r\n"t\u2028w, o",./v2.mp4\r\n'),
    ],
)
def test_caption_tables(four, tmp_path, table, text):
    shutil.copytree(four, tmp_path, dirs_exist_ok=True)
    (tmp_path / table).write_text(text, encoding="utf-8", newline="")
    (tmp_path / "index.json").write_text("[not captions")
    assert _captions(tmp_path) == {"v1.mp4": "one", "v2.mp4": "t\u2028w, o", "v3.mp4": ""}


def test_captions_beside_the_videos(four, tmp_path):
    shutil.copytree(four, tmp_path, dirs_exist_ok=True)
    (tmp_path / "v2.txt").write_text(" two\n")
    assert _captions(tmp_path) == {"v1.mp4": "", "v2.mp4": "two", "v3.mp4": ""}


@pytest.mark.parametrize(
    ("table", "text", "message"),
    [
        ("m.jsonl", '{"file_name": "v9.mp4", "text": "a"}', "m.jsonl, line 1: v9.mp4 is not a video in"),
        ("m.jsonl", '{"file_name": "v1.mp4", "text": "a"}\n{"file_name": ', "m.jsonl, line 2 is not JSON"),
        ("m.jsonl", '["v1.mp4", "a"]', "m.jsonl, line 1 is not a JSON object"),
        ("m.jsonl", '{"file_name": 3, "text": "a"}', "line 1: a row needs the texts file_name and caption"),
        ("m.jsonl", '{"file_name": "v1.mp4", "text": 3}', "line 1: a row needs the texts file_name and caption"),
        ("m.csv", "v1.mp4,one\nv2.mp4,two\n", "m.csv, line 2: a row needs the texts file_name and caption"),
        ("m.csv", "file_name,text\nv1.mp4,one\nv7.mp4,two\n", "m.csv, line 3: v7.mp4 is not a video in"),
    ],
)
def test_malformed_captions_are_named(four, tmp_path, table, text, message):
    shutil.copytree(four, tmp_path, dirs_exist_ok=True)
    (tmp_path / table).write_text(text)
    with pytest.raises(ValueError, match=message):
        VideoFolder(tmp_path, "train", 16, 1, RATE)


def test_the_cache_of_decoded_files_is_bounded_and_safe(four):
    one_file = 12 * 16 * 16 * 3
    small = VideoFolder(four, "train", 16, 5, RATE, 4, cache_bytes=2 * one_file)
    large = VideoFolder(four, "train", 16, 5, RATE, 4)
    small[0]["video"][:] = 255  # what a caller does to its clip stays its own
    with ThreadPoolExecutor(4) as pool:
        videos = list(pool.map(lambda i: small[i]["video"], range(60)))
    np.testing.assert_array_equal(videos, [large[i]["video"] for i in range(60)])
    cached = [frames.nbytes for frames in small._cache.values()]
    assert len(cached) == 2 and sum(cached) == small._cached_bytes == 2 * one_file


def test_a_file_that_breaks_off_is_named_when_it_is_read(four, tmp_path):
    _write(tmp_path / "a.avi", 12, codec="mpeg4")
    source = VideoFolder(tmp_path, "test", 16, 12, RATE)
    _write(tmp_path / "a.avi", 4, codec="mpeg4")  # shorter than what the index saw
    with pytest.raises(ValueError, match="a.avi is damaged: .* only 4 can be decoded"):
        source[0]


@pytest.mark.skipif(not FILM.is_dir(), reason="needs a folder of real videos: set LOONG_TEST_VIDEO_DIR")
def test_real_film():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train, test = (VideoFolder(FILM, split, 32, 9, 6.5) for split in ("train", "test"))
    assert train._files and test._files and not set(train._files) & set(test._files)
    example = test[3]
    file, start = example["key"].split("#")
    expected = read_video(FILM / file, size=32, fps=6.5)[int(start) : int(start) + 9]
    np.testing.assert_array_equal(example["video"], expected)
    assert np.ptp(example["video"]) > 50


def test_make_source(four):
    digits = make_source(DataConfig(frame_size=32, num_frames=5, two_digit_share=1.0), "test", num_examples=6)
    assert isinstance(digits, MovingDigits) and len(digits) == 6
    np.testing.assert_array_equal(digits[2]["video"], MovingDigits("test", 32, 5, 1.0)[2]["video"])
    data = DataConfig(source="video_folder", path=str(four), frame_size=16, num_frames=5, fps=RATE, held_out_every=4)
    folder = make_source(data, "test", num_frames=1)
    assert isinstance(folder, VideoFolder)
    assert folder[0]["video"].shape == (1, 16, 16, 3) and _file(folder[0]) == "v0.mp4"
