"""The report about a source: what is there, what is bad, and a picture."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from loong_jax.config import DEBUG_TOKENIZER, CheckDataJob, DataConfig, TokenizerJob, TrainConfig
from loong_jax.evaluation.data import check_data
from loong_jax.training.tokenizer_job import train_tokenizer
from loong_jax.video_file import read_video

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from media import encode_image, encode_video  # noqa: E402


@pytest.mark.filterwarnings("ignore:.*bad media are passed over")
def test_a_folder_with_good_and_bad(tmp_path, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    for index in range(6):
        (folder / f"v{index}.mp4").write_bytes(encode_video(12 + index, 20 * index))
    (folder / "v1.txt").write_text("one")
    (folder / "w.mp4").write_bytes(b"nothing")
    (folder / "x.png").write_bytes(encode_image(3))
    (folder / "u.mp4").write_bytes(encode_video(3))
    data = DataConfig(source=f"folder:{folder}", frame_size=16, num_frames=5, fps=8, held_out_every=4)
    results = check_data(CheckDataJob(data=data, num_examples=20), tmp_path / "check")
    # u.mp4 is the first of the held-out files, v3.mp4 the second and x.png the third.
    media = results[f"folder:{folder} train"]
    assert media["media"] == media["looked at"] == 6 and media["cannot be opened"] == 1
    assert media["without caption"] == 4
    assert media["width x height"] == {"32x32": 5} and media["frames per second"]["median"] == 8
    assert media["seconds"]["most"] == pytest.approx(17 / 8, abs=0.01)
    assert results["clips train"]["clips read"] == 6 and results["clips train"]["clips per second"] > 0
    assert results["passed over"] == {"unreadable": 1, "too short": 1}
    assert json.loads((tmp_path / "check" / "data.json").read_text()) == results
    lines = (tmp_path / "check" / "bad_media.jsonl").read_text().splitlines()
    assert {json.loads(line)["key"] for line in lines} == {"w.mp4", "u.mp4"}
    picture = read_video(tmp_path / "check" / "clips.png")[0]
    assert picture.shape[0] >= 6 * 64 and picture.std() > 10
    said = capsys.readouterr().out
    assert "unreadable" in said and "too short" in said
    # What is too short is a choice, not damage.
    assert "A training would stop: 1 of 9 are damaged, more than data.max_bad_share=0.1 allows." in said
    lenient = dataclasses.replace(data, max_bad_share=0.2)
    check_data(CheckDataJob(data=lenient, num_examples=20), tmp_path / "check")
    assert "would stop" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*")
def test_a_source_without_one_good_medium(tmp_path):
    (tmp_path / "cuts.csv").write_text("video,start,stop,caption\nno.mp4,0,1,a\nno.mp4,2,1,b\n")
    data = DataConfig(source=f"cut_list:{tmp_path / 'cuts.csv'}", frame_size=16, num_frames=5)
    with pytest.raises(ValueError, match=r"100 examples in a row .*1 malformed row"):
        check_data(CheckDataJob(data=data), tmp_path / "check")


@pytest.mark.slow
def test_with_a_tokenizer_the_picture_shows_what_the_ids_keep(tmp_path):
    data = DataConfig(frame_size=32, num_frames=5)
    train = TrainConfig(num_steps=1, batch_size=8, log_every=1, checkpoint_every=1, eval_every=1, eval_batches=1)
    images = DataConfig(frame_size=32, num_frames=1)
    train_tokenizer(TokenizerJob(tokenizer=DEBUG_TOKENIZER, data=images, train=train), tmp_path / "tokenizer")
    job = CheckDataJob(data=data, tokenizer_path="../tokenizer", num_examples=8)
    results = check_data(job, tmp_path / "check")
    assert results["moving_digits train"] == {"what": "embedded digits, drawn as they are needed"}
    picture = read_video(tmp_path / "check" / "clips.png")[0]
    rows = picture[: 16 * 66].reshape(16, 66, -1)
    assert not np.array_equal(rows[0], rows[1]) and not np.array_equal(rows[0], rows[2])
