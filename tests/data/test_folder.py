"""A folder of videos and images: clips, captions, splits, and what is wrong with a folder, named."""

import dataclasses
import os
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from media import RATE, encode_image, encode_video

from loong_jax.config import DataConfig
from loong_jax.data.folder import read_folder
from loong_jax.data.moving_digits import MovingDigits
from loong_jax.data.sources import make_source
from loong_jax.video_file import read_video

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "big_buck_bunny_128"
FILM = Path(os.environ.get("LOONG_TEST_VIDEO_DIR", SHARED))


def _folder(path: Path, count: int = 4, frames: int = 12) -> Path:
    path.mkdir(exist_ok=True)
    for i in range(count):
        (path / f"v{i}.mp4").write_bytes(encode_video(frames, 40 * i))
    return path


def _source(path, split="train", num_frames=5, fps=RATE, held_out_every=4, **options):
    data = DataConfig(source=f"folder:{path}", frame_size=16, num_frames=num_frames, fps=fps, **options)
    return make_source(DataConfig(**vars(data) | {"held_out_every": held_out_every}), split)


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> Path:
    return _folder(tmp_path_factory.mktemp("four"))


def _file(example: dict) -> str:
    return example["key"].split("#")[0]


def test_clips_are_deterministic_and_consecutive(four):
    source, again = (_source(four) for _ in range(2))
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
    video = _source(four, "test", 3, 2.0)[0]["video"]  # every fourth frame: all 12 are needed
    np.testing.assert_allclose(video.mean(axis=(1, 2, 3)), [0, 32, 64], atol=2)


@pytest.mark.filterwarnings("ignore:.*bad media are passed over")
def test_splits_are_apart_and_stay_when_clips_get_longer(tmp_path):
    (tmp_path / "deep").mkdir()
    for i in range(8):
        (tmp_path / "deep" / f"v{i}.mp4").write_bytes(encode_video(6 if i % 3 == 0 else 20))
    shown = {}
    for num_frames in (1, 16):
        for split in ("train", "test"):
            source = _source(tmp_path, split, num_frames)
            shown[num_frames, split] = {_file(source[i]) for i in range(16)}
    names = {f"deep/v{i}.mp4" for i in range(8)}
    assert shown[1, "test"] == {"deep/v0.mp4", "deep/v4.mp4"} and shown[1, "train"] == names - shown[1, "test"]
    assert shown[16, "test"] == {"deep/v4.mp4"} and shown[16, "train"] == {f"deep/v{i}.mp4" for i in (1, 2, 5, 7)}


def test_images_are_single_frames_and_no_part_of_longer_clips(four, tmp_path):
    shutil.copytree(four, tmp_path, dirs_exist_ok=True)
    for i in range(3):
        (tmp_path / f"w{i}.png").write_bytes(encode_image(50 * i))
    (tmp_path / "w1.txt").write_text("gray")
    frames = [_source(tmp_path, num_frames=1)[i] for i in range(5)]
    assert [_file(frame) for frame in frames] == ["v1.mp4", "v2.mp4", "v3.mp4", "w1.png", "w2.png"]
    np.testing.assert_array_equal(frames[3]["video"], np.full((1, 16, 16, 3), 50))
    assert frames[3]["caption"] == "gray"
    assert {_file(_source(tmp_path, num_frames=2)[i]) for i in range(20)} == {"v1.mp4", "v2.mp4", "v3.mp4"}


def test_videos_with_a_picture_beside_each_are_in_both_splits(tmp_path):
    for i in range(8):
        (tmp_path / f"v{i}.jpg").write_bytes(encode_image(9))
        (tmp_path / f"v{i}.mp4").write_bytes(encode_video(20))
    seen = {}
    for frames in (1, 5):
        for split in ("train", "test"):
            source = _source(tmp_path, split, frames)
            seen[frames, split] = {_file(source[i]) for i in range(16)}
    assert seen[5, "test"] == {"v0.mp4", "v4.mp4"} and len(seen[5, "train"]) == 6
    assert seen[1, "test"] == {"v0.mp4", "v4.mp4", "v0.jpg", "v4.jpg"} and len(seen[1, "train"]) == 12


def test_what_a_mixture_has_of_each_medium_without_a_number(four, tmp_path):
    """As many as the source takes longest for that has most media for its weight."""
    _folder(tmp_path / "b", count=2)
    data = DataConfig(source=f"3*folder:{four}|folder:{tmp_path / 'b'}", frame_size=16, num_frames=5, fps=RATE)
    source = make_source(dataclasses.replace(data, held_out_every=4), "train", num_examples=0)
    assert len(source) == 4  # three of a, one of b
    assert sorted(_file(source[i]) for i in range(4)) == ["v1.mp4", "v1.mp4", "v2.mp4", "v3.mp4"]


def test_a_name_that_is_no_utf8_is_written_out(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.mp4", "wb") as file:
        file.write(encode_video(6))
    [medium] = read_folder(tmp_path)
    assert medium.key == "caf\\udce9.mp4" and medium.content.is_file()


def test_a_folder_without_what_is_needed_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        _source(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no video or image: looked for .mp4"):
        _source(tmp_path)
    (tmp_path / "a.png").write_bytes(encode_image(9))
    with pytest.raises(ValueError, match="images alone"):
        _source(tmp_path)


def test_a_clip_of_exactly_the_file_fits_and_one_frame_more_does_not(four):
    example = _source(four, "test", 12)[0]
    np.testing.assert_allclose(example["video"].mean(axis=(1, 2, 3)), 8 * np.arange(12), atol=2)
    with pytest.warns(UserWarning, match="too short"), pytest.raises(ValueError, match="a clip of 13 frames at 8"):
        _source(four, "test", 13)[0]


def test_one_video_serves_both_splits_with_a_warning(tmp_path):
    _folder(tmp_path, count=1)
    assert _file(_source(tmp_path, "test")[0]) == "v0.mp4"
    with pytest.warns(UserWarning, match="has but one medium: it serves both splits"):
        assert _file(_source(tmp_path, "train")[0]) == "v0.mp4"


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [("a.avi", "mpeg4", "yuv420p"), ("a.mkv", "libx264", "yuv420p"), ("a.webm", "libvpx-vp9", "yuv420p")]
    + [("a.mov", "libx264", "yuv420p"), ("A.GIF", "gif", "gray8")],
)
def test_containers(tmp_path, name, codec, pixels):
    kind = {"mkv": "matroska"}.get(name[2:].lower(), name[2:].lower())
    (tmp_path / name).write_bytes(encode_video(12, kind=kind, codec=codec, pixels=pixels))
    example = _source(tmp_path, "test", 12)[0]
    start = int(example["key"].split("#")[1])  # a gif's time stamps are rounded up, so that 13 instants show something
    expected = np.minimum(8 * (start + np.arange(12)), 88)
    np.testing.assert_allclose(example["video"].mean(axis=(1, 2, 3)), expected, atol=3.9)


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
    assert _source(tmp_path, "test", 8)[0]["video"].shape[0] == 8
    with pytest.warns(UserWarning, match="1.00 s, and a clip needs"), pytest.raises(ValueError, match="too short"):
        _source(tmp_path, "test", 10)[0]


def _captions(folder: Path) -> dict[str, str]:
    return {medium.key: medium.caption for medium in read_folder(folder)[1:]}


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
        ("m.jsonl", '{"file_name": "v9.mp4", "text": "a"}', "m.jsonl, line 1: v9.mp4 is no file in"),
        ("m.jsonl", '{"file_name": "v1.mp4", "text": "a"}\n{"file_name": ', "m.jsonl, line 2 is not JSON"),
        ("m.jsonl", '["v1.mp4", "a"]', "m.jsonl, line 1 is not a JSON object"),
        ("m.jsonl", '{"file_name": 3, "text": "a"}', "line 1: a row needs the texts file_name and caption"),
        ("m.jsonl", '{"file_name": "v1.mp4", "text": 3}', "line 1: a row needs the texts file_name and caption"),
        ("m.csv", "v1.mp4,one\nv2.mp4,two\n", "m.csv, line 2: a row needs the texts file_name and caption"),
    ],
)
def test_malformed_captions_are_named(four, tmp_path, table, text, message):
    shutil.copytree(four, tmp_path, dirs_exist_ok=True)
    (tmp_path / table).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_folder(tmp_path)


def test_captions_of_absent_files_are_counted(four, tmp_path):
    shutil.copytree(four, tmp_path, dirs_exist_ok=True)
    (tmp_path / "m.csv").write_text("file_name,text\nv1.mp4,one\nv7.mp4,two\nv8.mp4,two\n")
    with pytest.warns(UserWarning, match="2 captions are of files that are not in .*line 3: v7.mp4"):
        assert _captions(tmp_path) == {"v1.mp4": "one", "v2.mp4": "", "v3.mp4": ""}


@pytest.mark.skipif(not FILM.is_dir(), reason="needs a folder of real videos: set LOONG_TEST_VIDEO_DIR")
@pytest.mark.filterwarnings("ignore:.*bad media are passed over")
def test_real_film():
    data = DataConfig(source=f"folder:{FILM}", frame_size=32, num_frames=9)
    train, test = ({_file(make_source(data, split)[i]) for i in range(40)} for split in ("train", "test"))
    assert train and test and not train & test
    example = make_source(data, "test")[3]
    file, start = example["key"].split("#")
    expected = read_video(FILM / file, size=32, fps=6.5)[int(start) : int(start) + 9]
    np.testing.assert_array_equal(example["video"], expected)
    assert np.ptp(example["video"]) > 50


def test_make_source(four):
    digits = make_source(DataConfig(frame_size=32, num_frames=5, two_digit_share=1.0), "test", num_examples=6)
    assert isinstance(digits, MovingDigits) and len(digits) == 6
    np.testing.assert_array_equal(digits[2]["video"], MovingDigits("test", 32, 5, 1.0)[2]["video"])


def test_sources_are_mixed_by_weight(four, tmp_path):
    _folder(tmp_path / "b")
    data = DataConfig(
        source=f"3*folder:{four}|folder:{tmp_path / 'b'}|moving_digits", frame_size=32, num_frames=5, fps=8
    )
    for file in (tmp_path / "b").glob("v*.mp4"):
        file.with_suffix(".txt").write_text("of b")
    source = make_source(data, "train", num_examples=100)
    assert len(source) == 100
    examples = [source[index] for index in range(100)]
    kinds = [example["caption"] or "a" if example["label"] == () else "digits" for example in examples]
    assert [kinds.count(kind) for kind in ("a", "of b", "digits")] == [60, 20, 20]
    assert kinds[:50].count("a") == 30
    np.testing.assert_array_equal(source[41]["video"], make_source(data, "train")[41]["video"])
    with pytest.raises(IndexError):
        source[100]
