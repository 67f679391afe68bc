"""The evaluation: folders, pairs and a model's samples in; a table, a report and a page that needs no network out."""

import base64
import html.parser
import json
import re

import numpy as np
import pytest

from loong_jax import evaluate
from loong_jax.config import DataConfig, EvaluateJob, FvdConfig, SamplingChanges, SamplingConfig
from loong_jax.data.moving_digits import MovingDigits, canonical_caption
from loong_jax.evaluate import run_evaluate
from loong_jax.evaluation import measure as measuring
from loong_jax.evaluation.reconstruction import psnr
from loong_jax.video import write_video
from loong_jax.video_file import read_video

DATA = DataConfig(frame_size=32, num_frames=26, two_digit_share=0.0)
PLAIN = {"measure_fvd": False, "measure_lpips": False, "data": DATA, "window_seconds": 2.0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three videos of digits with their texts, and the same with noise."""
    root, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    source = MovingDigits("test", 32, 26, 0.0)
    for index in range(3):
        example = source[index]
        noisy = np.clip(example["video"] + rng.normal(0, 20, example["video"].shape), 0, 255).astype(np.uint8)
        write_video(root / "real" / f"{index}.mkv", example["video"], 6.5)
        write_video(root / "noisy" / f"{index}.mkv", noisy, 6.5)
        for name in ("real", "noisy"):
            (root / name / f"{index}.txt").write_text(canonical_caption(example["label"]))
    return root


class Tags(html.parser.HTMLParser):
    """The tags of a page, and that each is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "br", "html"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag != "html":
            assert self.open.pop() == tag


def test_a_folder_and_its_originals(folders, tmp_path, capsys):
    job = EvaluateJob(videos=str(folders / "noisy"), reference=str(folders / "real"), num_shown=2, **PLAIN)
    report = run_evaluate(job, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    ours, real = report["videos"], report["reference"]
    pairs = [[read_video(folders / name / f"{i}.mkv") for name in ("noisy", "real")] for i in range(3)]
    expected = [np.mean([psnr(a[13 * w : 13 * w + 13], b[13 * w : 13 * w + 13]) for w in (0, 1)]) for a, b in pairs]
    assert [row["psnr"] for row in report["each"]] == pytest.approx(expected)
    assert ours["metrics"]["psnr"] == pytest.approx(np.mean(expected)) and "psnr" not in real["metrics"]
    assert ours["metrics"]["temporal_flickering"] < real["metrics"]["temporal_flickering"]
    assert len(ours["by_window"]["motion_amount"]) == 2 and len(ours["by_second"]["digit"]) == 4
    assert real["metrics"]["digit_first"] == 1 and real["metrics"]["direction_first"] == 1
    assert ours["storage"] == real["storage"] == {"ffv1": 3} and ours["count"] == 3
    said = capsys.readouterr().out
    assert "PSNR, dB" in said and "report.html" in said

    page = (tmp_path / "report.html").read_text()
    tags = Tags(page)
    assert tags.open == [] and not re.search(r"https?://|<script|<link", page)
    videos = [attributes["src"] for tag, attributes in tags.tags if tag == "video"]
    shown = read_video(base64.b64decode(videos[0].removeprefix("data:video/mp4;base64,")))
    assert len(videos) == 2 and shown.shape == (26, 256, 512, 3)  # the original on the left
    assert [tag for tag, _ in tags.tags].count("svg") >= 6
    assert re.search(r"<polyline points=\"[\d., ]+\"", page) and "a " in page


def test_a_folder_alone_is_compared_with_nothing(folders, tmp_path):
    report = run_evaluate(EvaluateJob(videos=str(folders / "real"), num_videos=2, **PLAIN), tmp_path)
    assert report["reference"] is None and report["videos"]["count"] == 2
    assert "psnr" not in report["videos"]["metrics"] and report["videos"]["metrics"]["digit_first"] == 1


def test_distances_are_of_the_clips_of_both_sets(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "load_i3d", lambda: {})
    monkeypatch.setattr(
        measuring, "clip_features", lambda weights, clips: clips[:, :, ::8, ::8, 0].reshape(len(clips), -1) / 1.0
    )
    options = PLAIN | {"measure_fvd": True, "fvd": FvdConfig(num_frames=9, num_folds=1)}
    job = EvaluateJob(videos=str(folders / "noisy"), reference=str(folders / "real"), **options)
    report = run_evaluate(job, tmp_path)
    assert report["videos"]["metrics"]["fvd"] > 1 and report["protocol"]["fvd"]["num_frames"] == 9
    assert len(report["videos"]["by_window"]["fvd"]) == len(report["videos"]["by_window"]["fvd_from_start"]) == 2
    same = EvaluateJob(videos=str(folders / "real"), reference=str(folders / "real"), **options)
    assert abs(run_evaluate(same, tmp_path)["videos"]["metrics"]["fvd"]) < 1e-6
    too_long = EvaluateJob(videos=str(folders / "real"), **options | {"fvd": FvdConfig(num_frames=16)})
    with pytest.raises(ValueError, match="Video 0: .* needs 16 frames; a window has 13: make it longer"):
        run_evaluate(too_long, tmp_path)


def test_lossy_files_are_said(folders, tmp_path):
    video = read_video(folders / "real" / "0.mkv")
    write_video(tmp_path / "lossy" / "a.mp4", video, 6.5)
    with pytest.warns(UserWarning, match="1 videos are stored with loss .h264."):
        report = run_evaluate(EvaluateJob(videos=str(tmp_path / "lossy"), **PLAIN), tmp_path / "out")
    assert report["videos"]["storage"] == {"h264": 1}


def test_files_of_one_name_are_one_video_and_the_best_is_taken(folders, tmp_path):
    for index in (0, 1):
        video = read_video(folders / "real" / f"{index}.mkv")
        for extension in ("gif", "mkv", "mp4"):
            write_video(tmp_path / "mixed" / f"{index}.{extension}", video, 6.5)
    report = run_evaluate(EvaluateJob(videos=str(tmp_path / "mixed"), num_videos=2, **PLAIN), tmp_path / "out")
    assert report["videos"]["storage"] == {"ffv1": 2} and [row["name"] for row in report["each"]] == ["0", "1"]


def test_pairs_are_found_in_a_larger_folder(folders, tmp_path):
    video = read_video(folders / "noisy" / "2.mkv")
    write_video(tmp_path / "part" / "2.mkv", video, 6.5)
    job = EvaluateJob(videos=str(tmp_path / "part"), reference=str(folders / "real"), num_videos=1, **PLAIN)
    expected = psnr(video, read_video(folders / "real" / "2.mkv"))
    assert run_evaluate(job, tmp_path / "out")["videos"]["metrics"]["psnr"] == pytest.approx(float(expected), abs=0.5)
    write_video(tmp_path / "part" / "9.mkv", video, 6.5)
    job = EvaluateJob(videos=str(tmp_path / "part"), reference=str(folders / "real"), **PLAIN)
    with pytest.warns(UserWarning, match="has no video 9 .1 of 2 names"):
        assert "psnr" not in run_evaluate(job, tmp_path / "out")["videos"]["metrics"]


def test_windows_too_short_to_see_motion_leave_it_out(folders, tmp_path):
    job = EvaluateJob(videos=str(folders / "real"), **PLAIN | {"window_seconds": 0.4})  # of 3 and 2 frames
    report = run_evaluate(job, tmp_path)
    assert "motion_amount" not in report["videos"]["metrics"] and report["videos"]["metrics"]["digit_first"] >= 0


class Model:
    """Draws what is asked for."""

    frame_size, fps, fingerprint, sampling = 32, 6.5, "1", SamplingConfig(top_k=7)


@pytest.fixture
def model(monkeypatch):
    asked = []

    def sample_videos(pipe, prompts, seed, sampling, batch_size):
        assert sampling == SamplingConfig(seconds=2.0, top_k=7)
        asked.append((tuple(prompts), seed))
        source = MovingDigits("test", 32, 13, 0.0)
        found = {canonical_caption(source[i]["label"]): source[i]["video"] for i in range(5)}
        return np.stack([found[prompt] for prompt in prompts])

    monkeypatch.setattr(evaluate.pipeline, "load", lambda path, mesh: Model())
    monkeypatch.setattr(evaluate, "sample_videos", sample_videos)
    return asked


def test_a_model_samples_held_out_prompts_once(model, tmp_path):
    job = EvaluateJob(model_path="../model", num_videos=5, batch_size=2, sampling=SamplingChanges(seconds=2.0), **PLAIN)
    report = run_evaluate(job, tmp_path)
    assert [(len(prompts), seed) for prompts, seed in model] == [(2, 0), (2, 2), (1, 4)]
    assert report["videos"]["from"] == "samples of ../model" and report["videos"]["storage"] == {"ffv1": 5}
    assert report["videos"]["metrics"]["digit_first"] == report["videos"]["metrics"]["color_last"] == 1
    assert report["reference"]["count"] == 5 and report["reference"]["seconds"] == 4
    (tmp_path / "videos" / "0003.mkv").unlink()
    assert run_evaluate(job, tmp_path) == report  # goes on where it was stopped
    assert len(model) == 4 and model[-1] == model[1]
    again = run_evaluate(EvaluateJob(videos=str(tmp_path / "videos"), **PLAIN), tmp_path / "again")
    assert again["videos"]["metrics"] == report["videos"]["metrics"]
    other = EvaluateJob(model_path="../model", num_videos=5, seed=7, **PLAIN)
    with pytest.raises(ValueError, match="holds samples of another model or of other settings: take another --workdir"):
        run_evaluate(other, tmp_path)


def test_a_folder_of_pictures(tmp_path):
    (tmp_path / "empty").mkdir()
    write_video(tmp_path / "empty" / "a.gif", np.zeros((1, 16, 16, 3), np.uint8))
    (tmp_path / "empty" / "a.gif").rename(tmp_path / "empty" / "a.png")
    with pytest.raises(ValueError, match="holds no video: looked for .mp4"):
        run_evaluate(EvaluateJob(videos=str(tmp_path / "empty"), **PLAIN), tmp_path)
