"""Lists of cuts of long videos, as HDVG's."""

import numpy as np
import pytest
from media import encode_video

from loong_jax.config import DataConfig
from loong_jax.data.bad_media import BadMedium
from loong_jax.data.cut_list import CutList
from loong_jax.data.sources import make_source


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuts")
    (folder / "film.mp4").write_bytes(encode_video(80))
    return folder


def test_cuts_become_clips(folder):
    (folder / "cuts.csv").write_text(
        "video,start,stop,caption\nfilm.mp4,0,1,one\nfilm.mp4,00:00:02.5,0:04,two\nfilm.mp4,5,7.25,three\n"
    )
    media = list(CutList(folder / "cuts.csv"))
    assert [(m.key, m.start, m.stop, m.caption) for m in media] == [
        ("film.mp4@0", 0, 1, "one"),
        ("film.mp4@2.5", 2.5, 4, "two"),
        ("film.mp4@5", 5, 7.25, "three"),
    ]
    data = DataConfig(source=f"cut_list:{folder / 'cuts.csv'}", frame_size=16, num_frames=8, fps=8, held_out_every=3)
    test = make_source(data, "test")[0]  # the whole of the first cut
    np.testing.assert_allclose(test["video"].mean(axis=(1, 2, 3)), 8 * np.arange(8), atol=2)
    assert {make_source(data, "train")[index]["caption"] for index in range(4)} == {"two", "three"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('{"video": "film.mp4", "start": 1, "stop": 2}', "line 1: a row needs video, start, stop, caption"),
        ("{", "line 1 is not JSON"),
    ],
)
def test_malformed_lists_are_named(folder, text, message):
    (folder / "bad.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        CutList(folder / "bad.jsonl")
    with pytest.raises(ValueError, match=r"nowhere.jsonl does not exist"):
        CutList(folder / "nowhere.jsonl")


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        ('{"video": "film.mp4", "start": 1, "stop": 2}', "malformed row", "line 2: video and caption must be"),
        ('{"video": "no.mp4", "start": 1, "stop": 2, "caption": ""}', "no such file", "line 2: there is no video"),
        ('{"video": "film.mp4", "start": "a", "stop": 2, "caption": ""}', "malformed row", "start is 'a', and must be"),
        ('{"video": "film.mp4", "start": 1, "caption": ""}', "malformed row", "stop is None, and must be"),
        ('{"video": "film.mp4", "start": 1, "stop": NaN, "caption": ""}', "malformed row", "stop is nan"),
        ('{"video": "film.mp4", "start": 2, "stop": 1, "caption": ""}', "malformed row", "start 2 .* before stop 1"),
    ],
)
def test_a_bad_row_is_one_bad_medium(folder, row, reason, message):
    """Lists of a million cuts name videos that are gone by now."""
    (folder / "bad.jsonl").write_text('{"video": "film.mp4", "start": 1, "stop": 2, "caption": "good"}\n' + row)
    media = CutList(folder / "bad.jsonl")
    assert len(media) == 2 and media[0].caption == "good"
    with pytest.raises(BadMedium, match=message) as caught:
        media[1]
    assert caught.value.reason == reason
