"""A full disk, a folder that turns read-only and a clock that jumps cost files, but not the run or what it saved."""

import itertools
import os
import re
import resource
import shutil
import subprocess
import time

import jax.numpy as jnp
import numpy as np
import pytest
from runs import finish, last_step, log_of, newest, records, start, wait_for_step

from loong_jax import checksums
from loong_jax.training.metrics import read_metrics
from loong_jax.training.state import TrainState

pytestmark = pytest.mark.slow
SIZE = 300_000  # of the parameters: 1.2 MB
PLENTY = shutil._ntuple_diskusage(10**12, 0, 10**12)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only where file systems may be mounted")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def count(train):
    """Train steps that each add 1 to random parameters; ``before`` is called with the number of each step."""

    def call(workdir, before=lambda number: None, num_steps=8):
        def step(state, batch):
            before(int(batch["numbers"][0, 0]))
            params = {"weights": state.params["weights"] + 1}
            return TrainState(state.step + 1, params, ()), {"loss": params["weights"].mean()}

        weights = jnp.asarray(np.random.default_rng(0).standard_normal(SIZE), jnp.float32)  # nothing to compress
        state = TrainState(jnp.zeros((), jnp.int32), {"weights": weights}, ())
        settings = dict(num_steps=num_steps, log_every=1, checkpoint_every=2, keep_checkpoints=1)
        return train(workdir, step, state=state, **settings)

    return call


def fill(folder, left):
    """Leave so many bytes."""
    with (folder / "filler").open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(folder).free - left)))


@pytest.mark.parametrize("is_foreseen", [True, False], ids=["before it is written", "while it is written"])
@pytest.mark.parametrize("left", [600_000, 0])
def test_a_full_disk(count, small_disk, monkeypatch, is_foreseen, left):
    """From step 3 to step 7: checkpoint 2 stays whole meanwhile, and the run goes on to its end."""
    seen = []

    def before(number):
        if number == 3:
            time.sleep(1)  # until checkpoint 2 is there
            fill(small_disk, left)
            if not is_foreseen:
                monkeypatch.setattr(shutil, "disk_usage", lambda folder: PLENTY)
        if number in (5, 7):
            time.sleep(1)
            seen.append({path.name for path in (small_disk / "checkpoints").iterdir() if "partial" not in path.name})
        if number == 7:
            (small_disk / "filler").unlink()

    with pytest.warns(UserWarning, match="checkpoint of step 4 could not be written") as warnings:
        state = count(small_disk, before)
    assert int(state.step) == 8 and seen == [{"2"}, {"2"}]
    assert any("step 6 could not be written" in str(warning.message) for warning in warnings)
    assert {path.name for path in (small_disk / "checkpoints").iterdir()} == {"8"}
    steps = [record["step"] for record in read_metrics(small_disk)]
    assert steps == sorted(steps) and {1, 2, 7, 8} <= set(steps)
    assert steps == list(range(1, 9)) or left == 0


@pytest.mark.parametrize("victim", [0, 1])
def test_the_disk_of_one_of_two_processes(victim, tmp_path):
    """Full for five steps, by a limit on the size of its files: both leave out the same checkpoints, and go on."""
    workdir = tmp_path / "run"
    processes = start(workdir, "language_model", "--config.train.num_steps=40", num_processes=2)

    def limit(size):
        resource.prlimit(processes[victim].pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    assert wait_for_step(processes[0], workdir, 3)
    limit(100_000)
    first, kept = last_step(workdir) + 1, newest(workdir)
    assert wait_for_step(processes[0], workdir, first + 5)
    assert int(newest(workdir).name) <= first and not checksums.find_damage(newest(workdir))
    limit(resource.RLIM_INFINITY)
    finish(processes, workdir)
    said = re.findall(
        r"warning: process (.): The checkpoint of step (\d+) could .*\((.*)\)", log_of(workdir).read_text()
    )
    assert {process for process, _, _ in said} == {"0", "1"} and abs(int(said[0][1]) - first) <= 1
    assert {reason for _, _, reason in said} == {f"process {victim}: File too large"}
    assert [record["step"] for record in records(workdir) if record["split"] == "train"] == list(range(1, 41))
    assert newest(workdir).name == "40" and not checksums.find_damage(newest(workdir)) and not kept.exists()


def test_a_folder_that_turns_read_only(count, small_disk):
    """The run ends with an error, for it could not save its result; when it can, it goes on from what it had."""
    folder = str(small_disk / "checkpoints")

    def before(number):
        if number == 5:
            time.sleep(1)
            subprocess.run(["mount", "--bind", folder, folder], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)

    try:
        for call in (lambda: count(small_disk, before), lambda: count(small_disk)):
            with (
                pytest.warns(UserWarning, match="could not be written"),
                pytest.raises(OSError, match="step 8.*Read-only"),
            ):
                call()
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
    numbers = []
    assert int(count(small_disk, numbers.append).step) == 8 and numbers == [5, 6, 7, 8]


def test_a_clock_that_jumps(count, tmp_path, monkeypatch):
    """By a year back or ahead between any two steps: order and place of everything are those of steps.

    A jump of more than orbax's twenty minutes while a checkpoint is written costs that checkpoint, with a warning.
    """
    true_time, offset = time.time, itertools.cycle([-3e7, 3e7])
    numbers = []

    def before(number):
        numbers.append(number)
        time.sleep(0.5)  # until the last checkpoint is there
        jump = next(offset)
        monkeypatch.setattr(time, "time", lambda: true_time() + jump)

    for num_steps in (3, 6, 8):
        assert int(count(tmp_path / "run", before, num_steps).step) == num_steps
    assert numbers == list(range(1, 9))
    assert [record["step"] for record in read_metrics(tmp_path / "run")] == list(range(1, 9))
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"8"}
