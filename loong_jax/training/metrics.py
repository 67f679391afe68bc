"""Where metrics go: metrics.jsonl, TensorBoard, and the screen; of several processes the first one's alone."""

import contextlib
import datetime
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from loong_jax.appending import append_whole
from loong_jax.video import Image, write_image

CONSOLE = Console(soft_wrap=True)
if CONSOLE.is_jupyter:  # a notebook is no terminal, and shows plain lines best
    CONSOLE = Console(soft_wrap=True, force_jupyter=False, force_terminal=False)


class MetricsWriter:
    """Writes one record per call, to ``<workdir>/metrics.jsonl`` and TensorBoard.

    A record is {"step": int, "split": str, name: float or list of floats}; a list (loss per latent frame) becomes one
    TensorBoard scalar per entry. Records past ``start_step`` are removed first, so that a resumed training leaves the
    file that an unbroken one would have left. What cannot be written is left out, with a warning.
    """

    def __init__(self, workdir: Path, start_step: int):
        self._workdir, self._path = workdir, workdir / "metrics.jsonl"
        self._is_first = jax.process_index() == 0
        self._board = _Board(workdir / "tensorboard", start_step + 1)
        if self._is_first:
            kept = [line for line in _lines(self._path) if json.loads(line)["step"] <= start_step]
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text("".join(line + "\n" for line in kept))
            temporary.replace(self._path)

    def write(self, step: int, split: str, metrics: dict[str, Any]) -> None:
        """Add one record of numbers and lists of numbers."""
        if not self._is_first:
            return
        record = {name: np.asarray(value, np.float64).tolist() for name, value in metrics.items()}
        with dispensable(self._path):
            append_whole(self._path, json.dumps({"step": step, "split": split, **record}).encode() + b"\n")
            values = []
            for name, value in record.items():
                for suffix, scalar in enumerate(value) if isinstance(value, list) else [(None, value)]:
                    tag = f"{split}/{name}" if suffix is None else f"{split}/{name}/{suffix:02d}"
                    values.append(summary.scalar(tag, scalar))
            self._board.write(step, values)

    def write_picture(self, step: int, name: str, picture: Image) -> None:
        """Write ``<workdir>/samples/<name>.png``, over the one of an earlier step, and show it in TensorBoard."""
        path = self._workdir / "samples" / f"{name}.png"
        with dispensable(path):
            write_image(path, picture)
            self._board.write(step, [summary.image(name, picture, dataformats="HWC")])

    def close(self) -> None:
        """End the files."""
        with dispensable(self._workdir / "tensorboard"):
            self._board.close()


class _Board:
    """TensorBoard's file, written at once: a thread that dies of a full disk or a clock would let all others wait."""

    def __init__(self, folder: Path, next_step: int):
        self._folder, self._next_step = folder, next_step
        self._events: EventsWriter | None = None

    def write(self, step: int, summaries: list[Summary]) -> None:
        """Add to the file, or begin another where the last one could not be written."""
        events, self._events = self._events, None
        if events is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            events = EventsWriter(str(self._folder / "events"), f".{step}")
            # What earlier files say of later steps does not count.
            start = SessionLog(status=SessionLog.START)
            events.write_event(Event(wall_time=time.time(), step=self._next_step, session_log=start))
        for part in summaries:
            events.write_event(Event(wall_time=time.time(), step=step, summary=part))
        events.flush()
        self._events, self._next_step = events, step + 1

    def close(self) -> None:
        """End the file, if there is one."""
        events, self._events = self._events, None
        if events is not None:
            events.close()


def write_result(workdir: Path, name: str, picture: Image) -> None:
    """Write ``<workdir>/samples/<name>.png`` and show it in TensorBoard: a picture of what a training has led to."""
    write_image(workdir / "samples" / f"{name}.png", picture)
    board = _Board(workdir / "tensorboard", next_step=0)
    board.write(0, [summary.image(name, picture, dataformats="HWC")])
    board.close()


@contextlib.contextmanager
def dispensable(path: Path) -> Iterator[None]:
    """A training does without a file that cannot be written inside, and says so."""
    try:
        yield
    except OSError as error:
        warnings.warn(f"{path} could not be written ({error.strerror or error}): the training goes on.", stacklevel=3)


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
        self._begun: tuple[int, float] | None = None  # how many were done when the clock was started, and when
        self._bar = None
        if CONSOLE.is_terminal and jax.process_index() == 0:
            columns = ("{task.description}", BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), _Summary())
            self._bar = Progress(*columns, console=CONSOLE)
            self._task = self._bar.add_task(title, total=total, completed=start, summary="")
            self._bar.start()

    def advance_to(self, done: int) -> None:
        """Move the bar, on a terminal."""
        if self._bar:
            self._bar.update(self._task, completed=done)

    def start_clock(self, done: int) -> None:
        """Measure from here on: what came before was compiling, or was there already."""
        self._begun = done, time.perf_counter()

    def rate(self, done: int) -> float:
        """How many were done a second since the clock was started; 0 where it was not."""
        if self._begun is None:
            return 0.0
        before, begin = self._begun
        return (done - before) / (time.perf_counter() - begin)

    def note(self, done: int, text: str) -> None:
        """Say what is to be read later, too: a line of its own, on a terminal above the bar."""
        say(f"{self._title} {done}/{self._total} {text}")

    def report(self, done: int, summary: str, rate: float = 0.0) -> None:
        """Say how things stand; of ``rate``, how many are done a second, a log says the time left as the bar does."""
        if self._bar:
            self._bar.update(self._task, completed=done, summary=summary)
            return
        parts = [summary] * bool(summary)
        if rate and done < self._total:
            parts.append(f"{datetime.timedelta(seconds=round((self._total - done) / rate))} left")
        say(f"{self._title} {done}/{self._total} {'  '.join(parts)}".rstrip())

    def close(self) -> None:
        """End the bar, where there is one."""
        if self._bar:
            self._bar.stop()


class _Summary(ProgressColumn):
    """The last column, which is cut where the screen ends; the others stay whole."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["summary"], no_wrap=True, overflow="ellipsis")


def say(text: str) -> None:
    """Print one line."""
    if jax.process_index() == 0:
        CONSOLE.print(text, highlight=False, markup=False)


def summarize(metrics: dict[str, Any], names: tuple[str, ...]) -> str:
    """The named metrics in one short line."""
    return "  ".join(f"{name} {_short(float(metrics[name]))}" for name in names if name in metrics)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
