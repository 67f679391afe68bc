"""How far a long job is: a bar that moves on a terminal, lines with the time left in a log."""

import io
import re

import pytest
from rich.console import Console

from loong_jax.training import metrics
from loong_jax.training.metrics import ProgressReport


@pytest.fixture
def screen(monkeypatch):
    def open_screen(is_terminal: bool, width: int = 120) -> io.StringIO:
        shown = io.StringIO()
        monkeypatch.setattr(metrics, "CONSOLE", Console(file=shown, force_terminal=is_terminal, width=width))
        return shown

    return open_screen


def test_a_bar_stands_where_the_report_says(screen):
    shown = screen(is_terminal=True)
    progress = ProgressReport("sampling", 390)
    progress.report(260, "20 frames/s", rate=20.0)
    progress.close()
    assert "260/390" in shown.getvalue() and "20 frames/s" in shown.getvalue()
    assert "left" not in shown.getvalue()  # the bar has a time of its own


def test_a_note_stays_above_the_bar(screen):
    shown = screen(is_terminal=True)
    progress = ProgressReport("stage1", 2000)
    progress.note(100, "WARNING: the codebook is collapsing")
    progress.report(100, "loss 2.1")
    progress.close()
    assert "stage1 100/2000 WARNING: the codebook is collapsing\n" in shown.getvalue()


def test_on_a_narrow_terminal_the_summary_is_cut(screen):
    shown = screen(is_terminal=True, width=80)
    progress = ProgressReport("tokenizer (17 frames)", 400)
    progress.report(400, "psnr 24.31  codebook_usage 0.6131  steps_per_second 1.482")
    progress.close()
    assert re.search(r"400/400.*0:00:00.* psnr 24\.31 .*…", shown.getvalue())
    assert "steps" not in shown.getvalue()


@pytest.mark.parametrize(
    ("done", "summary", "rate", "line"),
    [
        (100, "loss 2.1", 0.5, "stage1 100/2000 loss 2.1  1:03:20 left"),
        (100, "loss 2.1", 0.0, "stage1 100/2000 loss 2.1"),
        (100, "", 0.0, "stage1 100/2000"),
        (2000, "loss 1.9", 0.5, "stage1 2000/2000 loss 1.9"),
    ],
)
def test_a_line_of_a_log_ends_with_the_time_left(screen, done, summary, rate, line):
    shown = screen(is_terminal=False)
    ProgressReport("stage1", 2000).report(done, summary, rate)
    assert shown.getvalue() == line + "\n"


def test_the_rate_is_counted_from_the_start_of_the_clock(screen, monkeypatch):
    screen(is_terminal=False)
    times = iter((10.0, 14.0))
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(times))
    progress = ProgressReport("encoding", 1024)
    assert progress.rate(256) == 0.0
    progress.start_clock(256)
    assert progress.rate(512) == 64.0
