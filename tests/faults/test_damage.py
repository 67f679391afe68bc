"""Every file of a checkpoint in turn cut, changed by a bit, or removed: it is found, named, and the one before taken.

What changed before the checksums were taken, in memory or on its way to the disk, cannot be found.
"""

import shutil
from pathlib import Path

import jax
import pytest
from runs import finish, newest, start

from loong_jax.checkpoint import Checkpointer, load_meta, load_parts
from loong_jax.config_dict import from_config_dict
from loong_jax.sharding import make_mesh
from loong_jax.training.lm_step import create_model_state
from loong_jax.training.optimizer import make_optimizer

pytestmark = pytest.mark.slow


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir with checkpoints 1 and 2, and the shapes of its state."""
    workdir = tmp_path_factory.mktemp("damage") / "run"
    finish(start(workdir, "language_model", "--config.train.num_steps=2"), workdir)
    job = from_config_dict(load_meta(workdir)["config"])
    optimizer = make_optimizer(job.optimizer, job.train.num_steps)
    return workdir, create_model_state(job, optimizer, make_mesh(job.mesh), is_abstract=True)[0]


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_damage_of_every_file_is_found(trained, damage, tmp_path):
    workdir, abstract = trained
    names = [path.relative_to(newest(workdir)) for path in newest(workdir).rglob("*") if path.is_file()]
    assert len(names) > 20
    for number, name in enumerate(names):
        copy = tmp_path / str(number)
        shutil.copytree(workdir / "checkpoints", copy / "checkpoints")
        if not (copy / "checkpoints" / "2" / name).stat().st_size and damage is not Path.unlink:
            continue
        damage(copy / "checkpoints" / "2" / name)
        with Checkpointer(copy) as checkpoints, pytest.warns(UserWarning, match="from step 1") as said:
            step, state, _ = checkpoints.restore(abstract)
        message = str(said[0].message)
        assert step == int(state.step) == 1 and ("checksums.json" in message or name.as_posix() in message)
        assert {path.name for path in (copy / "checkpoints").iterdir()} == {"1", "2.damaged"}
        shutil.rmtree(copy)


def test_weights_alone_are_as_safe(trained, tmp_path):
    """Whoever samples or goes on to the next stage reads ``params`` alone, and is told if those are damaged."""
    workdir, abstract = trained
    params = jax.tree.map(lambda x: x, abstract.params)
    for name in [
        path.relative_to(newest(workdir)) for path in (newest(workdir) / "params").rglob("*") if path.is_file()
    ]:
        copy = shutil.copytree(workdir / "checkpoints", tmp_path / "run" / "checkpoints").parent
        flip(copy / "checkpoints" / "2" / name)
        with pytest.raises(ValueError, match=f"checkpoints/2 is damaged .{name.as_posix()}"):
            load_parts(copy, {"params": params})
        shutil.rmtree(copy)
