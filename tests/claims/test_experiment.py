"""The experiment on the claims: what is there is not run again, and the whole of it runs with tiny models."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loong_jax.claims.arms import ARMS
from loong_jax.claims.experiment import Cells
from loong_jax.config_dict import load_job

ROOT = Path(__file__).parents[2]
JOB = load_job(ROOT / "configs", "claims:debug")


def test_cells_are_run_seed_by_seed_and_never_twice(tmp_path):
    path = tmp_path / "claims.json"
    cells = Cells(path, JOB)
    everything = [(seed, name) for seed in (0, 1) for name in ARMS]
    assert cells.missing(range(2)) == everything
    for seed, name in everything[:3]:
        cells.add({"arm": name, "seed": seed})
    assert {path.name for path in tmp_path.iterdir()} == {"claims.json", ".lock"}
    again = Cells(path, dataclasses.replace(JOB, num_seeds=2, first_seed=1))
    assert again.found == cells.found and again.missing(range(2)) == everything[3:]
    assert again.missing(range(1, 2)) == everything[len(ARMS) :]


def test_processes_of_two_seeds_add_to_one_file(tmp_path):
    path = tmp_path / "claims.json"
    first, second = Cells(path, JOB), Cells(path, dataclasses.replace(JOB, first_seed=1))
    first.add({"arm": "base", "seed": 0})
    second.add({"arm": "base", "seed": 1})
    first.add({"arm": "ids", "seed": 0})
    assert [(cell["seed"], cell["arm"]) for cell in Cells(path, JOB).found] == [(0, "base"), (1, "base"), (0, "ids")]


def test_cells_of_other_settings_are_refused(tmp_path):
    Cells(tmp_path / "claims.json", JOB).add({"arm": "base", "seed": 0})
    with pytest.raises(ValueError, match="holds cells of other settings: take another --workdir"):
        Cells(tmp_path / "claims.json", dataclasses.replace(JOB, num_prompts=3))


def run(workdir: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "loong_jax.main", "--config=configs/claims.py:debug", f"--workdir={workdir}"]
    return subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_every_arm_runs_and_a_kill_loses_none(tmp_path):
    path, deadline = tmp_path / "claims.json", time.monotonic() + 1800
    with run(tmp_path) as process:
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(5)  # the next cell is under way
        process.send_signal(signal.SIGKILL)
        process.communicate()
    before = json.loads(path.read_text())["cells"]
    assert 1 <= len(before) < len(ARMS)
    with run(tmp_path) as process:
        said, _ = process.communicate(timeout=3600)
    assert process.returncode == 0, said[-3000:]
    cells = json.loads(path.read_text())["cells"]
    assert [cell["arm"] for cell in cells] == list(ARMS) and cells[: len(before)] == before
    for cell in cells:
        arm = ARMS[cell["arm"]]
        lengths = set() if arm.is_tokenizer else {1 if "seconds" in arm.sampling else 2}
        assert {len(cell[name]) for name in ("digit", "color", "axis") if name in cell} == lengths
        assert ("by_second" in cell) == arm.by_second
    trained = [cell["arm"] for cell in cells if "loss" in cell]
    assert trained == [
        name for name, arm in ARMS.items() if name == "base" or arm.is_one_stage or "stage3" in arm.trainings
    ]
    assert all(len(cell["loss"]) == 17 for cell in cells if "loss" in cell)
    assert [cell["arm"] for cell in cells if "psnr" in cell] == ["base", "plain_vq"]
    assert "not measured (one seed)" in (tmp_path / "README.md").read_text() and (tmp_path / "stages.svg").exists()
