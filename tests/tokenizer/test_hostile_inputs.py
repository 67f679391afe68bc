"""A thousand inputs that nobody should give: each is a result or one clear ValueError."""

import numpy as np
import pytest

from loong_jax.config import DEBUG_TOKENIZER
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.video import write_video
from loong_jax.video_file import read_video

DTYPES = (np.uint8, np.int8, np.uint16, np.int32, np.int64, np.float16, np.float32, np.float64, bool, complex, object)
# Few sizes that are possible, so that little is compiled, and many that are not.
SIZES = (0, 1, 7, 8, 8, 8, 9, 16)
FRAMES = (0, 1, 1, 4, 5)
CHANNELS = (0, 1, 2, 3, 3, 3, 4, 5)
VALUES = (0.0, 1.0, 0.5, -1.0, 2.0, 255.0, 1e30, -1e30, np.inf, -np.inf, np.nan)
NOT_ARRAYS = (
    None,
    "video.mp4",
    b"",
    3,
    2.5,
    [],
    {},
    [[1], [2, 3]],
    [None],
    [[["a"]]],
    object(),
    range(4),
    {"video": 1},
    set(),
)


@pytest.fixture(scope="module")
def tokenizer():
    return VideoTokenizer.untrained(DEBUG_TOKENIZER)


def hostile_array(rng, sizes, last):
    shape = [rng.choice(FRAMES), rng.choice(sizes), rng.choice(sizes), *last]
    for _ in range(rng.choice([0, 0, 0, 1, 2])):  # some axes too many, or one too few
        shape = [int(rng.choice([0, 1, 2])), *shape] if rng.random() < 0.7 else shape[1:]
    dtype = DTYPES[rng.choice(len(DTYPES), p=[0.3] + 10 * [0.07])]
    with np.errstate(all="ignore"):
        array = np.full(shape, rng.choice(VALUES), np.float64)
        array.flat[: array.size // 2] = rng.choice(VALUES)
        return np.nan_to_num(array).astype(dtype) if np.dtype(dtype).kind in "iub" else array.astype(dtype)


def outcome(function, value):
    """The result, or None for a clear error; anything else is raised."""
    try:
        return function(value)
    except ValueError as error:
        message = str(error)
        assert message.endswith((".", ")")) and "\n" not in message and len(message) < 400, message
        return None


def is_video(array):
    return isinstance(array, np.ndarray) and array.dtype == np.uint8 and array.ndim in (4, 5) and array.shape[-1] == 3


@pytest.mark.slow
def test_four_hundred_things_to_encode(tokenizer):
    rng, encoded = np.random.default_rng(0), 0
    things = [*NOT_ARRAYS, *(hostile_array(rng, SIZES, [rng.choice(CHANNELS)]) for _ in range(400 - len(NOT_ARRAYS)))]
    for thing in things:
        ids = outcome(tokenizer.encode, thing)
        if ids is not None:
            encoded += 1
            assert ids.dtype == np.int32 and 0 <= ids.min() and ids.max() < 64
    assert 5 < encoded < 200


@pytest.mark.slow
def test_three_hundred_things_to_decode(tokenizer):
    rng, decoded = np.random.default_rng(1), 0
    things = [*NOT_ARRAYS, *(hostile_array(rng, (0, 1, 2, 2, 2), []) for _ in range(300 - len(NOT_ARRAYS)))]
    for thing in things:
        video = outcome(tokenizer.decode, thing)
        if video is not None:
            decoded += 1
            assert is_video(video)
    assert 5 < decoded < 200


def test_three_hundred_files_to_read(tmp_path):
    """Files cut anywhere, with bytes flipped, of noise, empty, misnamed; folders and names that do not exist."""
    rng, read = np.random.default_rng(2), 0
    video = rng.integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    contents = []
    for extension in (".mp4", ".gif"):
        write_video(tmp_path / f"whole{extension}", video, min_side=16)
        contents.append((tmp_path / f"whole{extension}").read_bytes())
    (tmp_path / "folder.mp4").mkdir()
    extensions = (".mp4", ".gif", ".avi", ".mkv", ".txt")
    for number in range(300):
        whole = contents[number % 2]
        kind = rng.choice(
            ["cut", "flipped", "noise", "empty", "absent", "folder", "misnamed"], p=[0.4, 0.3] + [0.06] * 5
        )
        path = tmp_path / f"{number}{rng.choice(extensions) if kind == 'misnamed' else extensions[number % 2]}"
        data = np.frombuffer(whole, np.uint8).copy()
        if kind == "cut":
            data = data[: rng.integers(len(data))]
        elif kind == "flipped":
            data[rng.integers(0, len(data), 8)] ^= rng.integers(1, 256, 8, dtype=np.uint8)
        elif kind in ("noise", "empty"):
            data = rng.integers(0, 256, 5000 if kind == "noise" else 0, dtype=np.uint8)
        if kind == "folder":
            path = tmp_path / "folder.mp4"
        elif kind != "absent":
            path.write_bytes(data.tobytes())
        options = {
            "size": rng.choice([None, 8, 0, -1]),
            "fps": rng.choice([None, 6.5, 0.0]),
            "start": rng.choice([0.0, 1.0, 99.0]),
        }
        result = outcome(lambda path, options=options: read_video(path, **options), path)
        if result is not None:
            read += 1
            assert is_video(result) and len(result) > 0
    assert 20 < read < 290
