"""Measuring a trained tokenizer: the numbers are those of its own reconstructions, and the pictures are written."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import ndimage

from loong_jax.config import DEBUG_TOKENIZER, DataConfig, EvaluateJob, TokenizerJob, TrainConfig
from loong_jax.data.moving_digits import MovingDigits
from loong_jax.evaluate import run_evaluate
from loong_jax.evaluation.reconstruction import psnr, ssim
from loong_jax.training.tokenizer_job import train_tokenizer
from loong_jax.video_file import read_video

DATA = DataConfig(frame_size=32, num_frames=5)
JOB = TokenizerJob(
    tokenizer=DEBUG_TOKENIZER,
    data=dataclasses.replace(DATA, image_share=0.5),
    ema_decay=0.5,
    train=TrainConfig(num_steps=4, batch_size=8, eval_batches=1, log_every=1),
)


def reference_ssim(a, b):
    """Wang et al. 2004, equation 13, with a Gaussian window of 11 pixels and sigma 1.5, inside the frame."""

    def blur(x):
        x = ndimage.gaussian_filter1d(x, 1.5, axis=0, radius=5)
        return ndimage.gaussian_filter1d(x, 1.5, axis=1, radius=5)[5:-5, 5:-5]

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, cov = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    structure = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    return (structure / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean()


def test_ssim_is_that_of_the_paper():
    rng = np.random.default_rng(0)
    a = rng.uniform(size=(2, 3, 16, 20, 3))
    b = np.clip(a + 0.2 * rng.normal(size=a.shape), 0, 1)
    expected = [
        np.mean([reference_ssim(x, y) for x, y in zip(*clips, strict=True)]) for clips in zip(a, b, strict=True)
    ]
    assert 0.5 < min(expected) < 0.99
    np.testing.assert_allclose(ssim(a.astype(np.float32), b.astype(np.float32)), expected, atol=1e-4)
    np.testing.assert_allclose(ssim(a.astype(np.float32), a.astype(np.float32)), 1, atol=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return folder, train_tokenizer(JOB, folder / "tokenizer")


@pytest.mark.slow
def test_the_table_is_of_the_running_mean_on_held_out_clips(trained):
    folder, tokenizer = trained
    job = EvaluateJob(data=DATA, num_videos=3, measure_lpips=False, measure_fvd=False)
    report = run_evaluate(job, folder / "evaluate")
    assert json.loads((folder / "evaluate" / "report.json").read_text()) == report
    results = report["videos"]["metrics"]
    assert "digit_first" in report["reference"]["metrics"] and "psnr" not in report["reference"]["metrics"]
    videos = np.stack([MovingDigits("test", 32, 5)[index]["video"] for index in range(3)])
    ids = tokenizer.encode(videos)
    decoded = tokenizer.decode(ids)
    np.testing.assert_allclose(results["psnr"], psnr(videos, decoded).mean(), atol=0.02)
    np.testing.assert_allclose(
        results["ssim"], ssim(*(x / np.float32(255) for x in (videos, decoded))).mean(), atol=1e-3
    )
    np.testing.assert_allclose(results["codebook_usage"], len(np.unique(ids)) / 64, atol=0.04)
    strip = read_video(folder / "evaluate" / "samples" / "reconstruction.mp4")
    assert strip.shape[0] == 5 and strip.shape[2] == 3 / 2 * strip.shape[1]
    assert (folder / "evaluate" / "samples" / "reconstruction.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_evaluations_of_a_training_have_every_metric(trained):
    folder, _ = trained
    records = [json.loads(line) for line in (folder / "tokenizer" / "metrics.jsonl").read_text().splitlines()]
    assert {"psnr", "ssim", "codebook_usage", "codebook_perplexity"} <= records[-1].keys() | records[-2].keys()
    assert (folder / "tokenizer" / "samples" / "reconstruction.mp4").exists()


@pytest.mark.slow
def test_a_collapsing_codebook_is_said_in_the_log(tmp_path, capsys):
    quantizer = dataclasses.replace(DEBUG_TOKENIZER.quantizer, clustering=False, dead_after=1, usage_alarm=1.0)
    tokenizer = dataclasses.replace(DEBUG_TOKENIZER, quantizer=quantizer)
    job = dataclasses.replace(JOB, tokenizer=tokenizer, data=DataConfig(frame_size=32, num_frames=1), ema_decay=0.0)
    train_tokenizer(job, tmp_path)
    assert "of the codes were used in the last 1 steps: the codebook is collapsing" in capsys.readouterr().out
