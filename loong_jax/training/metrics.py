"""Where metrics go: metrics.jsonl, TensorBoard, and the screen; of several processes the first one's alone."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from loong_jax.video import Image, write_image

CONSOLE = Console(soft_wrap=True)


class MetricsWriter:
    """Writes one record per call, to ``<workdir>/metrics.jsonl`` and TensorBoard.

    A record is {"step": int, "split": str, name: float or list of floats}; a list (loss per latent frame) becomes one
    TensorBoard scalar per entry. Records at or past ``start_step`` are removed first, so that a resumed training leaves
    the file that an unbroken one would have left.
    """

    def __init__(self, workdir: Path, start_step: int):
        self._workdir = workdir
        is_first = jax.process_index() == 0
        path = workdir / "metrics.jsonl" if is_first else Path(os.devnull)
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= start_step]
        path.write_text("".join(line + "\n" for line in kept))
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1, write_to_disk=is_first)

    def write(self, step: int, split: str, metrics: dict[str, Any]) -> None:
        record = {name: np.asarray(value, np.float64).tolist() for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, "split": split, **record}) + "\n")
        for name, value in record.items():
            for suffix, scalar in enumerate(value) if isinstance(value, list) else [(None, value)]:
                tag = f"{split}/{name}" if suffix is None else f"{split}/{name}/{suffix:02d}"
                self._board.add_scalar(tag, scalar, step)

    def write_picture(self, step: int, name: str, picture: Image) -> None:
        """Write ``<workdir>/samples/<name>.png``, over the one of an earlier step, and show it in TensorBoard."""
        write_image(self._workdir / "samples" / f"{name}.png", picture)
        self._board.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_metrics(workdir: Path) -> list[dict]:
    """All records of a training, oldest first."""
    return [json.loads(line) for line in _lines(Path(workdir) / "metrics.jsonl")]


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    # A kill can cut the last line short.
    return [line for line in lines if line.endswith("}")]


class ProgressReport:
    """A progress bar on a terminal, plain lines in a log."""

    def __init__(self, title: str, total: int, start: int = 0):
        self._title = title
        self._total = total
        self._bar = None
        if CONSOLE.is_terminal and jax.process_index() == 0:
            columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[summary]}"), console=CONSOLE)
            self._task = self._bar.add_task(title, total=total, completed=start, summary="")
            self._bar.start()

    def advance_to(self, done: int) -> None:
        """Move the bar, on a terminal."""
        if self._bar:
            self._bar.update(self._task, completed=done)

    def report(self, done: int, summary: str) -> None:
        """Say how things stand."""
        if self._bar:
            self._bar.update(self._task, completed=done, summary=summary)
        else:
            say(f"{self._title} {done}/{self._total} {summary}")

    def close(self) -> None:
        if self._bar:
            self._bar.stop()


def say(text: str) -> None:
    """Print one line."""
    if jax.process_index() == 0:
        CONSOLE.print(text, highlight=False, markup=False)


def summarize(metrics: dict[str, Any], names: tuple[str, ...]) -> str:
    """The named metrics in one short line."""
    return "  ".join(f"{name} {_short(float(metrics[name]))}" for name in names if name in metrics)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
