"""Shards in the layout of img2dataset and video2dataset, written here with the standard library and pyarrow."""

import io
import json
import tarfile

import pyarrow
import pyarrow.parquet
import pytest
from media import encode_image, encode_video

from loong_jax.config import DataConfig
from loong_jax.data.bad_media import BadMedium
from loong_jax.data.sources import make_source
from loong_jax.data.web_shards import WebShards


def write_tar(path, examples):
    """``examples``: {key: {extension: bytes}}; img2dataset puts a table of metadata and a JSON beside each tar."""
    with tarfile.open(path, "w") as tar:
        for key, parts in examples.items():
            for extension, content in parts.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    pyarrow.parquet.write_table(
        pyarrow.table({"key": list(examples), "status": ["success"] * len(examples)}), path.with_suffix(".parquet")
    )
    path.with_name(f"{path.stem}_stats.json").write_text("{}")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        write_tar(
            folder / f"{shard:05d}.tar",
            {
                f"{shard:05d}{row:04d}": {
                    "mp4": encode_video(12, 40 * row),
                    "txt": f"clip {row} of {shard}, é".encode(),
                    "json": json.dumps({"caption": "not this one"}).encode(),
                }
                for row in range(shard + 1)
            },
        )
    return folder


def test_every_example_of_every_tar_in_order(shards):
    media = WebShards(shards)
    assert len(media) == 6
    assert [media[place].caption for place in range(6)] == [
        f"clip {row} of {shard}, é" for shard in range(3) for row in range(shard + 1)
    ]
    assert media[5].key == "00002.tar/000020002" and media[5].content == encode_video(12, 80)


def test_a_tar_is_looked_through_once_however_many_there_are(tmp_path, monkeypatch):
    opened, really = [], tarfile.open
    for shard in range(80):
        write_tar(tmp_path / f"{shard:05d}.tar", {f"a{shard}é": {"mp4": b"video", "txt": b"text"}})
    monkeypatch.setattr(tarfile, "open", lambda path, *mode: opened.append(path) or really(path, *mode))
    for _ in range(2):
        media = WebShards(tmp_path)
        assert [media[place].key for place in range(80)] == [f"{n:05d}.tar/a{n}é" for n in range(80)]
    assert len(opened) == len(set(opened)) == 80


def test_as_a_source(shards):
    data = DataConfig(source=f"web_shards:{shards}", frame_size=16, num_frames=5, fps=8, held_out_every=3)
    train, test = (make_source(data, split) for split in ("train", "test"))
    assert {train[index]["key"].split("/")[0] for index in range(8)} == {"00001.tar", "00002.tar"}
    assert {test[index]["key"].split("#")[0] for index in range(8)} == {"00000.tar/000000000", "00002.tar/000020000"}
    assert train[0]["video"].shape == (5, 16, 16, 3)


def test_parquet_with_images(tmp_path):
    table = pyarrow.table(
        {
            "key": [f"{row:09d}" for row in range(5)],
            "caption": ["one", None, "three", "four", "five"],
            "jpg": [encode_image(40 * row) for row in range(4)] + [None],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "00000.parquet", row_group_size=2)
    media = WebShards(tmp_path)
    assert len(media) == 5
    assert [media[place].caption for place in range(4)] == ["one", "", "three", "four"]
    with pytest.raises(BadMedium, match="no bytes for 000000004"):
        media[4]
    data = DataConfig(source=f"web_shards:{tmp_path}", frame_size=16, num_frames=1, held_out_every=2)
    assert [make_source(data, "train")[index]["video"].mean() for index in range(2)] == [40, 120]


def test_damage_is_named(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        {
            "0": {"jpg": encode_image(8), "txt": b"\xff\xfe\xff"},
            "1": {"txt": b"a caption alone"},
            "2": {"jpg": encode_image(8), "json": b"{"},
            "3": {"jpg": encode_image(8), "json": b'{"caption": "from the metadata"}'},
        },
    )
    media = WebShards(tmp_path)
    for place, reason in enumerate(("caption is not UTF-8", "no media", "metadata is not JSON")):
        with pytest.raises(BadMedium) as caught:
            media[place]
        assert caught.value.reason == reason
    assert media[3].caption == "from the metadata"


def test_a_tar_that_breaks_off_keeps_what_came_before(tmp_path):
    write_tar(tmp_path / "a.tar", {str(row): {"mp4": encode_video(12), "txt": b"x"} for row in range(4)})
    whole = (tmp_path / "a.tar").read_bytes()
    for size in (0, 100, 600, len(whole) // 3, len(whole) // 2, len(whole) - 11_000):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / "b.tar").write_bytes(whole[:size])
        try:
            media = WebShards(folder)
        except ValueError as error:
            assert "hold no example" in str(error)  # noqa: PT017 - or a result, below
            continue
        for place in range(len(media)):
            try:
                assert media[place].content
            except BadMedium as error:
                assert error.reason == "damaged shard"  # noqa: PT017 - or a result, above


def test_folders_that_hold_no_shards(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        WebShards(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no shard: looked for \*.tar and \*.parquet"):
        WebShards(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"a.parquet cannot be read as a parquet file"):
        WebShards(tmp_path)
