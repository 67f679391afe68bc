"""Files made to take the machine: each is refused, soon, with little memory, and counted as other bad media are."""

import io
import json
import resource
import struct
import tarfile
import threading
import time
import zlib

import numpy as np
import pytest
from media import encode_image, encode_video

from loong_jax.config import MediaLimits
from loong_jax.data.bad_media import BadMedia, BadMedium
from loong_jax.data.clips import Clips, Medium
from loong_jax.data.cut_list import CutList
from loong_jax.data.tables import read_rows
from loong_jax.data.web_shards import WebShards
from loong_jax.video_file import TooLarge, VideoFile, read_video


def png(width: int, height: int, rows: int) -> bytes:
    """A black picture, of which only ``rows`` are there."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(rows * (1 + 3 * width)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def reason(content: bytes, path=None, **limits) -> str:
    """Why a clip of one frame cannot be cut; the good picture beside it is what is used."""
    good = Medium("good", encode_image(9), "")
    bad = BadMedia("source", 1.0, path)
    options = dict(frame_size=16, num_frames=1, fps=8.0, num_examples=2, limits=MediaLimits(**limits))
    with pytest.warns(UserWarning, match="bad media are passed over"):
        Clips([Medium("bomb", content, ""), good], [0, 1, 1], bad, **options)[0]
    [found] = bad.counts
    return found


def test_a_picture_of_many_pixels(tmp_path):
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    assert reason(png(12_000, 12_000, 10), tmp_path / "bad.jsonl") == "unreadable"
    assert time.monotonic() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # kB; the picture has 432 MB
    assert "max_pixels 100,000,000" in json.loads((tmp_path / "bad.jsonl").read_text())["detail"]
    assert reason(png(400, 400, 400), max_pixels=100_000) == "unreadable"
    assert read_video(png(400, 400, 400)).shape == (1, 400, 400, 3)


def test_a_video_that_says_it_has_many_pixels():
    assert reason(encode_video(4, side=256), max_pixels=50_000) == "too large"


def test_a_strip_that_would_be_scaled_to_many_pixels():
    strip = png(60_000, 1, 1)
    assert reason(strip, max_pixels=1_000_000) == "too large"
    assert read_video(strip).shape == (1, 1, 60_000, 3)


def test_a_medium_of_more_frames_seconds_or_bytes_than_allowed():
    gif = encode_video(40, kind="gif", codec="gif", pixels="gray8")
    assert len(read_video(gif, limits=MediaLimits(max_frames=40))) == 40
    for limits, said in (
        (MediaLimits(max_frames=39), "max_frames 39"),
        (MediaLimits(max_seconds=1e-9), "max_seconds 1e-09"),
    ):
        with pytest.raises(TooLarge, match=f"data.limits.{said}: read less of it"):
            read_video(gif, limits=limits)
    # Two frames a long time apart, and as many frames between them as are asked for.
    with pytest.raises(TooLarge, match="max_mib 1:"):
        read_video(gif, fps=1e6, limits=MediaLimits(max_mib=1))


@pytest.mark.parametrize(
    "playlist",
    [
        "ffconcat version 1.0\nfile '{file}'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{file}\n#EXT-X-ENDLIST\n",
    ],
)
def test_a_list_of_other_files_opens_none_of_them(playlist, tmp_path):
    (tmp_path / "other.mp4").write_bytes(encode_video(4))
    for name in ("list.mp4", "list%03d.png", "list.m3u8"):
        (tmp_path / name).write_text(playlist.format(file=tmp_path / "other.mp4"))
        with pytest.raises(ValueError, match="cannot be decoded"):
            VideoFile(tmp_path / name)


@pytest.mark.filterwarnings("ignore:.*bad media are passed over")
@pytest.mark.parametrize("kind", [b"mvhd", b"mdhd", b"tkhd", b"stts", b"stsz", b"stco"])
def test_lying_headers_of_an_mp4(kind):
    content = bytearray(encode_video(16))
    place = content.index(kind) + 8
    content[place : place + 24] = b"\x7f" * 24
    bad = BadMedia("source", 1.0)
    good = Medium("good", encode_video(16), "")
    clips = Clips([Medium("liar", bytes(content), ""), good], [0, 1], bad, **dict(CLIP, num_frames=4))
    for index in range(4):
        assert clips[index]["video"].shape == (4, 16, 16, 3)
    assert set(bad.counts) <= {"unreadable", "too short", "truncated", "too large"}


CLIP = dict(frame_size=16, num_frames=1, fps=8.0, num_examples=4)


def test_cuts_stay_in_the_folder_of_their_list(tmp_path):
    folder = tmp_path / "cuts"
    folder.mkdir()
    for place in (tmp_path, folder):
        (place / "video.mp4").write_bytes(encode_video(8))
    names = ["video.mp4", "../video.mp4", str(tmp_path / "video.mp4"), "a/../../video.mp4", "a/../video.mp4"]
    rows = [{"video": name, "start": 0, "stop": 1, "caption": "c"} for name in names]
    (folder / "cuts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cuts = CutList(folder / "cuts.jsonl")
    assert cuts[0].content == folder / "video.mp4"
    for place in (1, 2, 3):
        with pytest.raises(BadMedium) as error:
            cuts[place]
        assert error.value.reason == "outside the folder"


def tar_of(path, *files: tuple[str, bytes]) -> bytearray:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return bytearray(path.read_bytes())


def with_size(tar: bytearray, header: int, field: bytes) -> bytes:
    """A header's size replaced, and its checksum mended."""
    tar = tar.copy()
    tar[header + 124 : header + 136] = field.ljust(12, b"\0")
    tar[header + 148 : header + 156] = b" " * 8
    tar[header + 148 : header + 156] = b"%06o\0 " % sum(tar[header : header + 512])
    return bytes(tar)


@pytest.mark.parametrize(
    "size",
    [
        b"77777777777",  # 8 GiB
        b"\x80" + b"\0" * 3 + b"\x7f" * 8,  # more than any disk has
        b"\xff" * 10 + b"\xf8\x00",  # below 0: the next header is one before it
        b"not octal",
    ],
)
@pytest.mark.parametrize("header", [0, 1024])
def test_a_tar_that_lies_about_sizes(size, header, tmp_path):
    path = tmp_path / "00000.tar"
    tar = tar_of(path, ("a.png", encode_image(1)), ("a.txt", b"one"), ("b.png", encode_image(2)))
    path.write_bytes(with_size(tar, header, size))
    done = []

    def look():
        try:
            shards = WebShards(tmp_path)
            for place in range(len(shards)):
                try:
                    shards[place]
                except BadMedium as error:
                    assert error.reason in ("damaged shard", "no media", "too large")
        except ValueError as error:
            assert "hold no example" in str(error)
        done.append(True)

    reader = threading.Thread(target=look, daemon=True)
    reader.start()
    reader.join(timeout=20)
    assert done


def test_members_of_a_tar_that_are_too_large(tmp_path):
    tar_of(
        tmp_path / "00000.tar",
        ("a.png", encode_image(1) + bytes(2**20)),
        ("b.png", encode_image(2)),
        ("b.txt", b"x" * 100_000),
        ("c.png", encode_image(3)),
    )
    shards = WebShards(tmp_path, MediaLimits(max_mib=1))
    for place in (0, 1):
        with pytest.raises(BadMedium) as error:
            shards[place]
        assert error.value.reason == "too large"
    assert shards[2].content == encode_image(3)


def test_a_row_group_that_is_too_large(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"jpg": [encode_image(1), bytes(2**21)], "caption": ["a", "b"]})
    pyarrow.parquet.write_table(table, tmp_path / "0.parquet")
    with pytest.raises(BadMedium, match="row group 0 has"):
        WebShards(tmp_path, MediaLimits(max_mib=1))[0]
    assert WebShards(tmp_path)[0].content == encode_image(1)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", "video,caption\na.mp4," + "x" * 200_000, "line 1 is not CSV: field larger"),
        ("t.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("t.jsonl", '{"start": ' + "9" * 5000 + "}", "line 1 is not JSON"),
    ],
)
def test_tables_that_are_no_tables(name, content, said, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        read_rows(tmp_path / name)


def test_a_data_set_names_no_code_to_import(tmp_path):
    tfds_clips = pytest.importorskip("loong_jax.data.tfds_clips")
    features = {"pythonClassName": "antigravity.Feature", "features": [{"type": "tensorflow_datasets.core.x"}]}
    (tmp_path / "features.json").write_text(json.dumps({"inner": features}))
    with pytest.raises(ValueError, match="names the class antigravity.Feature"):
        tfds_clips.TfdsClips(str(tmp_path), "train")
    np.testing.assert_raises_regex(ValueError, "is damaged", _damaged, tmp_path)


def _damaged(folder):
    from loong_jax.data.tfds_clips import TfdsClips

    (folder / "features.json").write_text("[" * 100_000)
    TfdsClips(str(folder), "train")
