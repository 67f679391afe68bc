"""Every kind of source trains a tokenizer for five steps, through the command's own job."""

import dataclasses
import json
import tarfile
from io import BytesIO
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from media import encode_image, encode_video
from test_folder import FILM

from loong_jax.config import DEBUG_TOKENIZER, DataConfig, OptimizerConfig, TokenizerJob, TrainConfig
from loong_jax.data.clip_builder import write_clips
from loong_jax.training.tokenizer_job import train_tokenizer

TRAIN = TrainConfig(num_steps=5, batch_size=8, log_every=5, checkpoint_every=5, eval_every=5, eval_batches=1)
VIDEOS = [encode_video(16, 20 * index) for index in range(5)]


def folder(path: Path) -> str:
    for index, content in enumerate(VIDEOS):
        (path / f"{index}.mp4").write_bytes(content)
    return f"folder:{path}"


def tar(path: Path) -> str:
    with tarfile.open(path / "00000.tar", "w") as shard:
        for index, content in enumerate(VIDEOS):
            for extension, part in (("mp4", content), ("txt", b"a caption"), ("json", b'{"key": "x"}')):
                member = tarfile.TarInfo(f"{index:09d}.{extension}")
                member.size = len(part)
                shard.addfile(member, BytesIO(part))
    return f"web_shards:{path}"


def parquet(path: Path) -> str:
    columns = {"key": list("abcde"), "caption": ["x"] * 5, "jpg": [encode_image(40 * index) for index in range(5)]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path / "00000.parquet")
    return f"web_shards:{path}"


def cuts(path: Path) -> str:
    """Of the longest film shot, where there is film."""
    files = sorted(FILM.rglob("*.mp4"), key=lambda file: file.stat().st_size) if FILM.is_dir() else []
    video = path / "film.mp4"
    video.write_bytes(files[-1].read_bytes() if files else encode_video(40))
    rows = [{"video": "film.mp4", "start": 0.5 * i, "stop": 0.5 * i + 1.5, "caption": f"cut {i}"} for i in range(6)]
    (path / "cuts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"cut_list:{path / 'cuts.jsonl'}"


def tfds_clips(path: Path) -> str:
    return f"tfds:{write_clips(path, train=[(str(i), content, 'a clip') for i, content in enumerate(VIDEOS)])}"


OTHERS = (tar, parquet, cuts, tfds_clips)


def mixture(path: Path) -> str:
    return f"3*{folder(path)}|moving_digits"


@pytest.mark.slow
@pytest.mark.parametrize("make", [mixture, *OTHERS])
def test_five_steps(make, tmp_path):
    (tmp_path / "data").mkdir()
    frames = 1 if make is parquet else 5
    data = DataConfig(source=make(tmp_path / "data"), frame_size=32, num_frames=frames, fps=6.5)
    job = TokenizerJob(
        tokenizer=DEBUG_TOKENIZER, data=data, optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1), train=TRAIN
    )
    train_tokenizer(dataclasses.replace(job), tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 5 and all(0 < record["psnr"] < 99 for record in records)
    assert not (tmp_path / "run" / "bad_media.jsonl").exists()
