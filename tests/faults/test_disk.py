"""A full disk, a folder that turns read-only and a clock that jumps cost files, but not the run or what it saved."""

import itertools
import os
import shutil
import subprocess
import time

import jax.numpy as jnp
import numpy as np
import pytest

from loong_jax.config import TrainConfig
from loong_jax.training import loop
from loong_jax.training.metrics import read_metrics
from loong_jax.training.state import TrainState
from loong_jax.training.throughput import Work

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
def train(make_mesh):
    """Train eight steps that each add 1 to random parameters; ``before`` is called with the number of each step."""

    def call(workdir, before=lambda number: None, num_steps=8):
        def step(state, batch):
            before(int(batch["numbers"][0, 0]))
            params = {"weights": state.params["weights"] + 1}
            return TrainState(state.step + 1, params, ()), {"loss": params["weights"].mean()}

        weights = jnp.asarray(np.random.default_rng(0).standard_normal(SIZE), jnp.float32)  # nothing to compress
        training = loop.Training(
            title="disk",
            workdir=workdir,
            config=TrainConfig(
                num_steps=num_steps, batch_size=2, log_every=1, checkpoint_every=2, keep_checkpoints=1, eval_batches=0
            ),
            mesh=make_mesh(fsdp=1),
            state=TrainState(jnp.zeros((), jnp.int32), {"weights": weights}, ()),
            step=step,
            batches=lambda start: ({"numbers": np.full((2, 4), n)} for n in itertools.count(start + 1)),
            evaluate=lambda state: {},
            work=Work("numbers"),
            shown=("loss",),
            meta={"config": {"task": "language_model"}},
        )
        return loop.run(training)

    return call


def fill(folder, left):
    """Leave so many bytes."""
    with (folder / "filler").open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(folder).free - left)))


@pytest.mark.parametrize("is_foreseen", [True, False], ids=["before it is written", "while it is written"])
@pytest.mark.parametrize("left", [600_000, 0])
def test_a_full_disk(train, small_disk, monkeypatch, is_foreseen, left):
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
        state = train(small_disk, before)
    assert int(state.step) == 8 and seen == [{"2"}, {"2"}]
    assert any("step 6 could not be written" in str(warning.message) for warning in warnings)
    assert {path.name for path in (small_disk / "checkpoints").iterdir()} == {"8"}
    steps = [record["step"] for record in read_metrics(small_disk)]
    assert steps == sorted(steps) and {1, 2, 7, 8} <= set(steps)
    assert steps == list(range(1, 9)) or left == 0


def test_a_folder_that_turns_read_only(train, small_disk):
    """The run ends with an error, for it could not save its result; when it can, it goes on from what it had."""
    folder = str(small_disk / "checkpoints")

    def before(number):
        if number == 5:
            time.sleep(1)
            subprocess.run(["mount", "--bind", folder, folder], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)

    try:
        for call in (lambda: train(small_disk, before), lambda: train(small_disk)):
            with (
                pytest.warns(UserWarning, match="could not be written"),
                pytest.raises(OSError, match="step 8.*Read-only"),
            ):
                call()
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
    numbers = []
    assert int(train(small_disk, numbers.append).step) == 8 and numbers == [5, 6, 7, 8]


def test_a_clock_that_jumps(train, tmp_path, monkeypatch):
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
        assert int(train(tmp_path / "run", before, num_steps).step) == num_steps
    assert numbers == list(range(1, 9))
    assert [record["step"] for record in read_metrics(tmp_path / "run")] == list(range(1, 9))
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"8"}
