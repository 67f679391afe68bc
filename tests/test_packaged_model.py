"""The model that travels with the package is whole, small, and does what its prompts say."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import loong_jax
from loong_jax.data.moving_digits import MovingDigits, canonical_caption
from loong_jax.evaluation.digits import digit_benchmark, digits_by_window
from loong_jax.video_file import read_video

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pipe():
    return loong_jax.load()


def test_it_is_found_and_small():
    folder = ROOT / "loong_jax" / "assets"
    files = [path for path in folder.rglob("*") if path.is_file() and "readme" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 12e6
    with pytest.raises(ValueError, match="package:letters does not travel with loong_jax: there is digits"):
        loong_jax.load("package:letters")


def test_it_knows_every_caption(pipe, recwarn):
    source = MovingDigits("test", 32, 1, two_digit_share=0.0)
    for index in range(200):
        pipe.request(source[index]["caption"])
    assert not [warning for warning in recwarn if "takes no notice" in str(warning.message)]
    with pytest.warns(UserWarning, match="takes no notice of 'purple sideways': no text it was trained on"):
        pipe.request("a purple 7 moves sideways")


@pytest.mark.slow
def test_it_shows_what_prompts_say(pipe):
    """Ten seconds of 32 held-out prompts; a share of so few is good to about four percentage points."""
    source = MovingDigits("test", 32, 65, two_digit_share=0.0)
    scenes = [source[index]["label"] for index in range(32)]
    videos = pipe([canonical_caption(scene) for scene in scenes], seconds=10)
    shares = digit_benchmark(videos, scenes, pipe.fps)
    least = {"color_first": 0.9, "digit_first": 0.8, "direction_first": 0.8}
    assert all(shares[name] >= share for name, share in least.items()), shares


@pytest.mark.slow
def test_another_text_is_another_digit(pipe):
    """Five seconds of each of two held-out prompts; a text holds from its second on, at most a latent frame later."""
    source = MovingDigits("test", 32, 1, two_digit_share=0.0)
    scenes = [source[index]["label"] for index in range(32)]
    prompts = [canonical_caption(scene) for scene in scenes]
    videos = pipe([[(0, prompts[index]), (5, prompts[index + 1])] for index in range(0, 32, 2)], seconds=10)
    for part, wanted in ((videos[:, :32], scenes[::2]), (videos[:, 37:], scenes[1::2])):
        read = [digits_by_window(video, scene, pipe.fps, 5.0) for video, scene in zip(part, wanted, strict=True)]
        assert np.mean([one["digit"] for one in read]) >= 0.8 and np.mean([one["color"] for one in read]) >= 0.9


@pytest.mark.slow
def test_its_command_makes_a_minute(tmp_path):
    command = [sys.executable, "-m", "loong_jax.main", f"--config={ROOT}/configs/sample.py"]
    subprocess.run([*command, "--config.prompt=a red 7 moves left"], cwd=tmp_path, check=True, timeout=300)
    video = read_video(tmp_path / "runs" / "sample" / "samples" / "00_a_red_7_moves_left_seed0.mp4")
    assert video.shape == (390, 256, 256, 3)  # drawn larger
    brightest = video.reshape(390, -1, 3).max(axis=1).astype(int)  # of each color in each frame
    assert np.median(brightest[:, 0]) > 120 > 80 > np.median(brightest[:, 1:].max(axis=1))
