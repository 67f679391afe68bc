"""The doctor: each broken part is a finding that says what to do, whatever breaks, and the exit code tells."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from loong_jax import doctor
from loong_jax.config import DoctorJob

ROOT = Path(__file__).parents[1]
QUICK = DoctorJob(full=False, write_mib=1)


@pytest.fixture
def without_trials(monkeypatch):
    """What is tried in other processes is fine."""
    tried = []

    def try_apart(name, folder, timeout):
        tried.append(name)
        return doctor.Finding(name, "ok", "fine")

    monkeypatch.setattr(doctor, "try_apart", try_apart)
    return tried


def found(job=QUICK, workdir=None) -> dict[str, doctor.Finding]:
    return {finding.part: finding for finding in doctor.examine(job, workdir)}


def test_a_machine_that_is_fine(without_trials, tmp_path):
    findings = found(DoctorJob(write_mib=1, min_write_speed=0.0, min_memory_gib=0.0, min_disk_gib=0.0), tmp_path)
    assert without_trials == ["devices", "decoders", "tokenizer", "language_model", "sampler"]
    assert {finding.status for finding in findings.values()} <= {"ok", "note"}
    assert "jax 0." in findings["packages"].found and "MiB/s" in findings["disk"].found
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
    without_trials.clear()
    found(QUICK, tmp_path)
    assert without_trials == ["devices", "decoders"]


def test_packages_that_are_missing_or_old(without_trials, monkeypatch, tmp_path):
    installed = importlib.metadata.version

    def version(name):
        if name == "av":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.4.31" if name == "jax" else installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    finding = found(workdir=tmp_path)["packages"]
    assert (finding.status, finding.mend) == ("broken", "pip install 'jax>=0.10' 'av>=18'")
    assert "jax is 0.4.31, and 0.10 is needed" in finding.found and "av is missing" in finding.found


def test_a_workdir_that_cannot_be_written(without_trials, tmp_path):
    (tmp_path / "file").write_text("")
    finding = found(workdir=tmp_path / "file" / "workdir")["disk"]
    assert finding.status == "broken" and "NotADirectoryError" in finding.found
    assert doctor.run_doctor(QUICK, tmp_path / "file" / "workdir")  # which cannot write its report either


def test_a_full_disk_and_little_memory(without_trials, monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40, 2**20))
    findings = found(DoctorJob(full=False, write_mib=1, min_memory_gib=1e6), tmp_path)
    assert (findings["disk"].status, findings["memory"].status) == ("warning", "warning")

    def is_full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", is_full)
    finding = found(workdir=tmp_path)["disk"]
    assert finding.status == "broken" and finding.mend.startswith("free space")


def fake_python(folder: Path, script: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "said", "mend"),
    [
        ("kill -SEGV $$", "ended by SIGSEGV", "shows all of it|install loong_jax again"),
        ("echo loading >&2; kill -KILL $$", "ended by SIGKILL; it said: loading", "end other processes"),
        ("sleep 9", "no answer within 0.5 s", "--config.timeout"),
        ("echo 'RuntimeError: CUDA_ERROR_NO_DEVICE' >&2; exit 1", "CUDA_ERROR_NO_DEVICE", "nvidia-smi works"),
        ("echo 'ValueError: it rains' >&2; exit 1", "ValueError: it rains", "`python -m loong_jax.trials devices"),
        ("exit 3", "nothing was said", "shows all of it"),
    ],
)
def test_a_part_that_ends_or_hangs_in_a_library(script, said, mend, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", fake_python(tmp_path, script))
    finding = doctor.try_apart("devices", tmp_path, 0.5)
    assert finding.status == "broken" and said in finding.found
    assert re.search(mend, finding.mend)


def test_what_needs_a_broken_part_is_not_tried(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "try_apart", lambda name, *_: doctor.Finding(name, "broken", "gone"))
    findings = found(DoctorJob(write_mib=1), tmp_path)
    assert findings["devices"].status == "broken" and findings["sampler"].found.startswith("not tried")


def test_a_terminal_gets_a_table(without_trials, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    doctor.run_doctor(QUICK, tmp_path)
    printed = capsys.readouterr().out
    assert "what to do" in printed and '"loong_jax[' in printed  # markup eats no brackets


def command_line(workdir: Path, *settings: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "loong_jax.main", "--config=configs/doctor.py", f"--workdir={workdir}", *settings]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=600)


def test_the_doctor_runs_where_jax_cannot_be_imported(tmp_path):
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("raise RuntimeError('jaxlib version 0.1 is too old.')")
    result = command_line(tmp_path / "w", "--config.full=False", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert "broken: devices: RuntimeError: jaxlib version 0.1 is too old.; install matching" in result.stdout
    assert "trying: devices\nbroken: devices" in result.stdout  # what takes a while is said before
    assert "ok: decoders" in result.stdout and result.stdout.endswith("broken: devices.\n")
    report = json.loads((tmp_path / "w" / "doctor.json").read_text())
    assert {"part": "python", "status": "ok"}.items() <= report["findings"][0].items()


@pytest.mark.slow
def test_the_doctor_trains_and_samples(tmp_path):
    result = command_line(tmp_path)
    assert result.returncode == 0, result.stdout
    for said in ("ok: devices: ", "ok: tokenizer: loss", "ok: language model: loss", "ok: sampler: 6 frames"):
        assert said in result.stdout
