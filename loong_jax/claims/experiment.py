"""Run a ClaimsJob: train and sample every arm with every seed, and write down what each was found to do.

A cell is one arm with one seed. Cells that stand in ``claims.json`` are not run again, trainings go on where they were
stopped, and all arms of a seed come before the next seed, so that whatever is there can be compared.
"""

import fcntl
import functools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from loong_jax import pipeline
from loong_jax.claims.arms import ARMS, TOKENIZERS, Training, sampling, trainings
from loong_jax.claims.page import write_page
from loong_jax.config import ClaimsJob
from loong_jax.config_dict import to_json_dict
from loong_jax.data.moving_digits import MovingDigits, canonical_caption
from loong_jax.evaluation.digits import digit_benchmark, digits_by_window
from loong_jax.evaluation.reconstruction import codebook_usage, perplexity, psnr
from loong_jax.evaluation.report import write_report
from loong_jax.sample import sample_videos
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.training.lm_job import train_language_model
from loong_jax.training.metrics import read_metrics, say
from loong_jax.training.tokenizer_job import train_tokenizer
from loong_jax.video import contact_sheet, write_image

WINDOW = 10.0  # seconds of video that are read at once
_FIRST = 8  # frames in which a digit's direction is seen
_NUM_SHOWN = 12  # videos in the picture of a cell

Cell = dict[str, Any]


def run_claims(job: ClaimsJob, workdir: Path) -> list[Cell]:
    """Fill ``workdir``/claims.json and write the page beside it; returns all cells.

    Raises:
        ValueError: the file holds cells of other settings.
    """
    cells = Cells(workdir / "claims.json", job)
    missing = cells.missing(range(job.first_seed, job.first_seed + job.num_seeds))
    for count, (seed, name) in enumerate(missing):
        say(f"cell {count + 1} of {len(missing)}: {ARMS[name].label}, seed {seed}")
        cells.add(_run(job, name, seed, workdir / f"seed_{seed}"))
        write_page(workdir)
    write_page(workdir)
    say(f"The claims, with tables and plots, are in {workdir / 'README.md'}.")
    return cells.found


class Cells:
    """The cells of a file, which is whole whenever the run is killed."""

    def __init__(self, path: Path, job: ClaimsJob):
        """Open the file, if there is one.

        Raises:
            ValueError: it holds cells of other settings.
        """
        settings = json.loads(json.dumps(to_json_dict(job)))
        self._path = path
        self._settings = {name: value for name, value in settings.items() if name not in ("first_seed", "num_seeds")}
        self.found = self._read()

    def missing(self, seeds: range) -> list[tuple[int, str]]:
        """(seed, arm) of the cells that are still to run, a seed after the other."""
        there = {(cell["seed"], cell["arm"]) for cell in self.found}
        return [(seed, name) for seed in seeds for name in ARMS if (seed, name) not in there]

    def add(self, cell: Cell) -> None:
        """Keep one more cell, on disk too, beside those that other processes have added."""
        with open(self._path.parent / ".lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.found = [*self._read(), cell]
            temporary = self._path.with_suffix(".tmp")
            write_report(temporary, {"cells": self.found, "settings": self._settings})
            temporary.replace(self._path)

    def _read(self) -> list[Cell]:
        stored = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {"cells": []}
        if stored.get("settings", self._settings) != self._settings:
            raise ValueError(f"{self._path} holds cells of other settings: take another --workdir.")
        return stored["cells"]


def _run(job: ClaimsJob, name: str, seed: int, folder: Path) -> Cell:
    """Train what is not trained yet, sample and measure."""
    start, parts = time.perf_counter(), trainings(job, name, seed)
    for part, training in parts.items():
        _train(part, training, folder, _home(parts["tokenizer"]))
    trained = time.perf_counter()
    cell: Cell = {"arm": name, "seed": seed}
    if _home(parts["tokenizer"]) == name:
        cell |= _reconstruct(job, folder / name / "tokenizer")
    if "stage3" in parts:
        if _home(parts["stage3"]) == name:
            [*_, last] = [record for record in read_metrics(folder / name / "stage3") if record["split"] == "eval"]
            cell["loss"] = last["frame_loss"]
        cell |= _sample(job, name, seed, folder, parts["stage3"])
    minutes = {"training": (trained - start) / 60, "sampling": (time.perf_counter() - trained) / 60}
    return cell | {"minutes": minutes}


def _home(training: Training) -> str:
    """The arm whose folder a training is in."""
    return training.workdir.partition("/")[0]


@functools.cache
def _train(part: str, training: Training, folder: Path, tokenizer: str) -> None:
    """Train, or find the training done; once for all the arms that share it."""
    workdir = folder / training.workdir
    workdir.mkdir(parents=True, exist_ok=True)
    if part in TOKENIZERS:
        train_tokenizer(training.job, workdir)
    else:
        train_language_model(training.job, workdir, folder / tokenizer / "tokens")


def _reconstruct(job: ClaimsJob, path: Path) -> dict[str, float]:
    """What a tokenizer makes of held-out clips."""
    data, tokenizer = job.stage3.data, VideoTokenizer.load(path)
    source = MovingDigits("test", data.frame_size, data.num_frames, data.two_digit_share)
    originals = np.stack([source[index]["video"] for index in range(job.num_clips)])
    ids, num_codes = tokenizer.encode(originals), tokenizer.config.quantizer.num_codes
    return {
        "psnr": float(psnr(originals, tokenizer.decode(ids)).mean()),
        "codebook_usage": float(codebook_usage(ids, num_codes)),
        "perplexity": float(perplexity(ids, num_codes)),
    }


def _sample(job: ClaimsJob, name: str, seed: int, folder: Path, stage3: Training) -> Cell:
    """Shares of right digits, colors and directions in videos of the held-out prompts."""
    rules, data, pipe = sampling(job, name), job.stage3.data, _load(folder / stage3.workdir)
    source = MovingDigits("test", data.frame_size, 1, data.two_digit_share)
    scenes = [source[index]["label"] for index in range(job.num_prompts)]
    prompts = [canonical_caption(wanted) for wanted in scenes]
    videos = sample_videos(pipe, prompts, seed * job.num_prompts, rules, job.batch_size)
    write_image(folder / name / "samples.png", contact_sheet(list(videos[:_NUM_SHOWN]), columns=12))

    def shares(seconds: float) -> dict[str, list[float]]:
        read = [
            digits_by_window(video, wanted, pipe.fps, seconds) for video, wanted in zip(videos, scenes, strict=True)
        ]
        return {kind: np.mean([one[kind] for one in read], axis=0).tolist() for kind in read[0]}

    found = shares(min(WINDOW, rules.seconds))
    # Directions are those of the first frames.
    found["direction"] = digit_benchmark(np.stack([video[:_FIRST] for video in videos]), scenes)["direction_first"]
    if ARMS[name].by_second:
        found["by_second"] = shares(1.0)
    return found


@functools.lru_cache(maxsize=1)
def _load(workdir: Path) -> pipeline.Pipeline:
    """The last model is kept, for the arms that sample it in other ways."""
    return pipeline.load(workdir)
