"""Every file of a checkpoint in turn cut, changed by a bit, or removed: it is found, named, and the one before taken.

What changed before the checksums were taken, in memory or on its way to the disk, cannot be found.
"""

import shutil
from pathlib import Path

import pytest
from runs import finish, start

from loong_jax import checksums
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
    """And is restored around: tried in full for one file in twelve, which takes half a second each."""
    workdir, abstract = trained
    copy = shutil.copytree(workdir / "checkpoints", tmp_path / "checkpoints")
    names = sorted(path.relative_to(copy / "2") for path in (copy / "2").rglob("*") if path.is_file())
    assert len(names) > 20
    for number, name in enumerate(names):
        file = copy / "2" / name
        whole = file.read_bytes()
        if not whole and damage is not Path.unlink:
            continue
        damage(file)
        said = checksums.find_damage(copy / "2")
        assert name.as_posix() in said or "checksums.json" in str(name)
        assert said, f"{name} may be damaged without a word"
        if number % 12 == 0:
            with Checkpointer(tmp_path) as checkpoints, pytest.warns(UserWarning, match="from step 1") as warnings:
                step, state, _ = checkpoints.restore(abstract)
            assert step == int(state.step) == 1 and said in str(warnings[0].message)
            assert {path.name for path in copy.iterdir()} == {"1", "2.damaged"}
            (copy / "2.damaged").rename(copy / "2")
        file.write_bytes(whole)
        assert not checksums.find_damage(copy / "2")


def test_weights_alone_are_as_safe(trained, tmp_path):
    """Whoever samples or goes on to the next stage reads ``ema`` or ``params`` alone, and is told of damage."""
    workdir, abstract = trained
    copy = shutil.copytree(workdir / "checkpoints", tmp_path / "checkpoints")
    for item, tree in (("params", abstract.params), ("ema", abstract.ema)):
        file = max((copy / "2" / item).rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
        flip(file)
        with pytest.raises(ValueError, match=f"checkpoints/2 is damaged .{file.relative_to(copy / '2').as_posix()}"):
            load_parts(tmp_path, {item: tree})
    assert load_parts(tmp_path, {"step": abstract.step})["step"] == 2
