"""200 damaged copies of real files: each is read or accounted for, and nothing hangs."""

import io
import json
import threading

import av
import numpy as np
import pytest
from media import encode_image, encode_video
from test_folder import FILM

from loong_jax.data.bad_media import BadMedia
from loong_jax.data.clips import Clips
from loong_jax.data.folder import read_folder

NUM_COPIES = 200


def originals(folder):
    """Real film where it is at hand; else, and in other containers, videos made here."""
    film = sorted(FILM.rglob("*.mp4"))[:6] if FILM.is_dir() else []
    found = [(file.read_bytes(), ".mp4") for file in film]
    for kind, extension, codec in (
        ("mp4", ".mp4", "libx264"),
        ("avi", ".avi", "mpeg4"),
        ("matroska", ".mkv", "libx264"),
    ):
        found.append((encode_video(24, kind=kind, codec=codec, side=64), extension))
    return [*found, (encode_video(8, kind="gif", codec="gif", pixels="gray8"), ".gif"), (encode_image(90), ".png")]


def sound_alone() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        chunk = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        chunk.sample_rate = 8000
        container.mux([*stream.encode(chunk), *stream.encode()])
    return buffer.getvalue()


def damaged(content: bytes, extension: str, how: int, rng: np.random.Generator) -> tuple[bytes, str]:
    if how == 0:  # cut short, at times to nothing
        return content[: int(rng.integers(len(content)))], extension
    if how == 1:  # bits flip
        flipped = bytearray(content)
        for place in rng.integers(0, len(content), int(rng.integers(1, 200))):
            flipped[place] ^= 1 << int(rng.integers(8))
        return bytes(flipped), extension
    if how == 2:  # another extension
        return content, str(rng.choice([".mp4", ".gif", ".webm", ".png", ".jpg"]))
    hole = bytearray(content)
    start = int(rng.integers(len(content)))
    hole[start : start + 4096] = rng.bytes(len(hole[start : start + 4096]))
    return bytes(hole), extension


@pytest.mark.filterwarnings("ignore:.*bad media are passed over")
def test_every_damaged_copy_is_accounted_for(tmp_path):
    rng = np.random.default_rng(0)
    sources = originals(tmp_path)
    for copy in range(NUM_COPIES):
        content, extension = damaged(*sources[copy % len(sources)], copy % 4, rng)
        (tmp_path / f"{copy:03d}{extension}").write_bytes(content)
    (tmp_path / "audio.mp4").write_bytes(sound_alone())
    (tmp_path / "header.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(64))
    (tmp_path / "zzz.png").write_bytes(encode_image(7))
    media = read_folder(tmp_path)  # with one good picture to stand in for the bad ones
    assert len(media) == NUM_COPIES + 3
    bad = BadMedia("copies", 1.0, tmp_path / "bad.jsonl")
    good = len(media) - 1
    read = {}

    def look():
        for place in range(len(media)):
            clips = Clips(media, [place, good, good], bad, frame_size=16, num_frames=1, fps=6.5, num_examples=3)
            read[place] = clips[0]["key"].split("#")[0] == media[place].key

    reader = threading.Thread(target=look, daemon=True)
    reader.start()
    reader.join(timeout=120)
    assert not reader.is_alive() and len(read) == len(media)
    listed = {json.loads(line)["key"] for line in (tmp_path / "bad.jsonl").read_text().splitlines()}
    assert listed == {media[place].key for place, is_read in read.items() if not is_read}
    assert sum(bad.counts.values()) == len(listed) and set(bad.counts) <= {"unreadable", "too short", "truncated"}
    assert {"audio.mp4", "header.mp4"} <= listed and 20 < len(listed) < NUM_COPIES  # some can be read
