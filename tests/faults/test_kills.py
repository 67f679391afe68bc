"""Trainings that are killed or stopped at random moments end as the one that never was, bit for bit.

pytest -n 0 -m slow tests/faults/test_kills.py                        a few kills each, as in CI
LOONG_KILLS=40 LOONG_SOAK_SECONDS=1800 pytest -n 0 -m slow tests/faults/test_kills.py
"""

import collections
import functools
import json
import os
import random
import re
import signal
import time

import pytest
from runs import DEMO_PARTS, assert_same_run, finish, last_step, log_of, newest, records, start, wait_for_step

KILLS = int(os.environ.get("LOONG_KILLS", 3))
SOAK_SECONDS = float(os.environ.get("LOONG_SOAK_SECONDS", 45))
EVERY_SECONDS = 20  # of the soak
NUM_STEPS = 8 * KILLS
DEVICES = {"language_model": 2, "tokenizer": 1}
DEMO_STEPS = int(0.1 * SOAK_SECONDS)  # of each of its trainings; with the faults, all of them take about as long

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The workdir of the training of a kind that nothing happens to."""

    @functools.cache
    def train(kind):
        workdir = tmp_path_factory.mktemp(kind) / "unbroken"
        finish(start(workdir, kind, f"--config.train.num_steps={NUM_STEPS}", num_devices=DEVICES[kind]), workdir)
        return workdir

    return train


@pytest.mark.parametrize("kind", ["language_model", "tokenizer"])
def test_killed_at_random_moments(kind, unbroken, tmp_path):
    """While it starts, compiles, steps, and saves, which it does after every step."""
    workdir, rng = tmp_path / "killed", random.Random(0)
    at_work, in_save = 0, 0
    for kill in range(KILLS):
        [process] = start(workdir, kind, f"--config.train.num_steps={NUM_STEPS}", num_devices=DEVICES[kind])
        if rng.random() < 0.25:
            time.sleep(rng.uniform(0, 10))
        else:
            at_work += wait_for_step(process, workdir, last_step(workdir) + rng.randint(1, 5))
            time.sleep(rng.uniform(0, 0.3))
        process.kill()
        assert process.wait() in (-signal.SIGKILL, 0), f"kill {kill}: {log_of(workdir).read_text()[-2000:]}"
        in_save += any((workdir / "checkpoints").glob("*.partial*"))
    print(f"{kind}: killed {KILLS} times, {at_work} of them at work, and {in_save} while it saved")
    assert 2 * at_work > KILLS
    finish(start(workdir, kind, f"--config.train.num_steps={NUM_STEPS}", num_devices=DEVICES[kind]), workdir)
    assert_same_run(workdir, unbroken(kind))


def test_a_storm_of_signals(unbroken, tmp_path):
    """One signal saves and ends with 75, more end at once; the training goes on as if nothing had happened."""
    workdir, rng = tmp_path / "storm", random.Random(1)
    codes = []
    for count in (1, 20):
        [process] = start(workdir, "language_model", f"--config.train.num_steps={NUM_STEPS}", num_devices=2)
        if wait_for_step(process, workdir, last_step(workdir) + 2):
            for _ in range(count):
                process.send_signal(rng.choice([signal.SIGTERM, signal.SIGINT]))
                time.sleep(0.001)
        codes.append(process.wait(600))
    assert codes[0] == 75 and codes[1] in (75, 128 + signal.SIGTERM, 128 + signal.SIGINT)
    assert "stopped after" in log_of(workdir).read_text() and "Traceback" not in log_of(workdir).read_text()
    finish(start(workdir, "language_model", f"--config.train.num_steps={NUM_STEPS}", num_devices=2), workdir)
    assert_same_run(workdir, unbroken("language_model"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_of_two_processes(number, tmp_path):
    """Both save after the same step, and go on from there."""
    workdir, settings = tmp_path / "signaled", "--config.train.num_steps=30"
    processes = start(workdir, "language_model", settings, num_processes=2)
    assert wait_for_step(processes[0], workdir, 3)
    processes[1].send_signal(number)
    finish(processes, workdir, expected=75)
    stopped_at = last_step(workdir)
    assert 3 <= stopped_at < 30 and newest(workdir).name == str(stopped_at)
    finish(start(workdir, "language_model", settings, num_processes=2), workdir)
    steps = [record["step"] for record in records(workdir) if record["split"] == "train"]
    assert steps == list(range(1, 31)) and f"resuming at step {stopped_at}" in log_of(workdir).read_text()


def test_soak(tmp_path):
    """The demo, with faults at random moments, every 20 s on average, for as long as was asked, makes the same."""
    soaked, rng = tmp_path / "soaked", random.Random(2)
    settings = [f"--config.{part}.train.num_steps={DEMO_STEPS}" for part in DEMO_PARTS]
    deadline, codes = time.monotonic() + SOAK_SECONDS, []
    while time.monotonic() < deadline and not (soaked / "results.json").exists():
        [process] = start(soaked, "demo", *settings)
        time.sleep(rng.uniform(0, 2 * EVERY_SECONDS))
        process.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        codes.append(process.wait(600))
    print(f"soak: ended {len(codes)} times, with {dict(collections.Counter(codes))}")
    unbroken = tmp_path / "unbroken"
    for workdir in (soaked, unbroken):
        finish(start(workdir, "demo", *settings), workdir, seconds=600 + 2 * SOAK_SECONDS)
    # By itself it ends with 75; where Python or JAX are still being loaded, or nothing is trained, by the signal.
    assert set(codes) <= {0, 75, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}
    assert not re.search(r"^(error: |[\w.]*Error\b)", log_of(soaked).read_text(), re.MULTILINE)
    for part in DEMO_PARTS:
        assert_same_run(soaked / part, unbroken / part)
    results = [json.loads((workdir / "results.json").read_text()) for workdir in (soaked, unbroken)]
    assert [result.pop("minutes") > 0 for result in results] and results[0] == results[1]
