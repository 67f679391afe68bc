"""Checkpoints: bit-equal on another mesh, only the newest kept, and one clear sentence for what cannot be restored."""

import dataclasses
import gc
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from loong_jax import checksums, sharding
from loong_jax.checkpoint import Checkpointer, load_meta, load_parts
from loong_jax.config import OptimizerConfig
from loong_jax.training.optimizer import make_optimizer
from loong_jax.training.state import create_state

AXES = {"dense": {"kernel": ("embed", "mlp"), "scale": (None,)}, "head": ("embed", "vocab")}
SHAPES = {"dense": {"kernel": (16, 32), "scale": (32,)}, "head": (16, 64)}
OPTIMIZER = make_optimizer(OptimizerConfig(), 10)


def random_tree(key, shapes=SHAPES):
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [jax.random.normal(key, leaf) for key, leaf in zip(keys, leaves, strict=True)])


def make_state(mesh, seed, init_rest=lambda key, params: {"clusters": {"usage": jax.random.normal(key, (8,))}}):
    """A state after one update, so that no moment is zero; and its planned shardings."""
    state, shardings = create_state(random_tree, AXES, OPTIMIZER, mesh, jax.random.key(seed), init_rest)

    @jax.jit
    def update(state):
        gradients = random_tree(jax.random.key(seed + 100))
        updates, opt_state = OPTIMIZER.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return dataclasses.replace(state, step=state.step + seed, params=params, opt_state=opt_state)

    return jax.device_put(update(state), shardings), shardings


def planned(state, shardings):
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, shardings)


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((1, 8, 1, 1), sharding.MESH_AXES)


@pytest.fixture(scope="module")
def state(mesh):
    return make_state(mesh, 3)[0]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, mesh, state):
    """A workdir with checkpoints 2 and 3 of a training that also wrote 1; the newest is ``state``."""
    workdir = tmp_path_factory.mktemp("saved")
    with Checkpointer(workdir, keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(mesh, step)[0], {"config": {"number": step}})
        checkpoints.save(3, state, {"config": {"number": 3, "nested": {"names": ["a", "b"]}}})
    return workdir


@pytest.fixture
def copied(saved, tmp_path):
    """A copy to damage."""
    yield shutil.copytree(saved, tmp_path / "copied")
    gc.collect()  # what orbax leaves half-read complains here, and not in the middle of another test


def names_in(workdir):
    return {path.name for path in (workdir / "checkpoints").iterdir()}


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def test_a_state_comes_back_bit_for_bit_on_another_mesh(saved, state, make_mesh):
    other, shardings = make_state(make_mesh(data=2, fsdp=2, tensor=2), 0)
    assert np.any(np.asarray(other.params["head"]) != np.asarray(state.params["head"]))
    with Checkpointer(saved) as checkpoints:
        step, restored, meta = checkpoints.restore(planned(other, shardings))
    assert step == 3 and meta["config"]["number"] == 3
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert int(restored.step) == 3

    def compare(restored, stored, place):
        assert restored.dtype == stored.dtype and restored.sharding == place
        np.testing.assert_array_equal(restored, stored)

    jax.tree.map(compare, restored, state, shardings)
    assert restored.params["dense"]["kernel"].addressable_shards[0].data.shape == (8, 16)


def test_only_the_newest_are_kept(saved):
    assert names_in(saved) == {"2", "3"}


def test_those_of_every_so_many_steps_are_kept_too(tmp_path, state):
    with Checkpointer(tmp_path, keep=1, keep_every=2) as checkpoints:
        for step in range(1, 6):
            checkpoints.save(step, state, {})
    assert names_in(tmp_path) == {"2", "4", "5"}


def test_the_state_of_an_older_step_is_still_its_own(copied, mesh, state):
    shutil.rmtree(copied / "checkpoints" / "3")
    with Checkpointer(copied) as checkpoints:
        step, restored, _ = checkpoints.restore(abstract(state))
    assert step == 2
    jax.tree.map(np.testing.assert_array_equal, restored, make_state(mesh, 2)[0])


def test_meta_is_that_of_the_newest(saved):
    assert load_meta(saved) == {"config": {"number": 3, "nested": {"names": ["a", "b"]}}}


def test_parts_alone(saved, state):
    parts = load_parts(saved, {"params": abstract(state.params), "clusters": abstract(state.clusters)})
    assert set(parts) == {"params", "clusters"}
    jax.tree.map(np.testing.assert_array_equal, parts, {"params": state.params, "clusters": state.clusters})


def test_an_unfinished_checkpoint_does_not_count(copied, state):
    """It is written into folders of other names, and gets its own when all is there."""
    (copied / "checkpoints" / "3").rename(copied / "checkpoints" / "3.partial")
    (copied / "checkpoints" / "4.partial.orbax-checkpoint-tmp").mkdir()
    assert load_meta(copied) == {"config": {"number": 2}}
    with Checkpointer(copied) as checkpoints:
        assert checkpoints.restore(abstract(state))[0] == 2
        assert names_in(copied) == {"2"}
        checkpoints.save(3, state, {"config": {"number": 30}})
    assert load_meta(copied) == {"config": {"number": 30}}


def test_a_state_without_clusters(tmp_path, mesh):
    state, shardings = make_state(mesh, 1, init_rest=lambda key, params: {})
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
    with Checkpointer(tmp_path) as checkpoints:
        _, restored, _ = checkpoints.restore(planned(state, shardings))
    assert restored.clusters == ()
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def one_sentence(error, *said):
    """The message is one line, and says these things."""
    message = str(error.value)
    assert "\n" not in message and len(message) < 500
    for part in said:
        assert str(part) in message, f"{part!r} is not in {message!r}"


def test_no_workdir(tmp_path):
    for call in (load_meta, lambda workdir: load_parts(workdir, {})):
        with pytest.raises(ValueError) as error:
            call(tmp_path / "absent")
        one_sentence(error, tmp_path / "absent", "holds no checkpoints", "--workdir")
    assert not (tmp_path / "absent").exists()


def test_no_complete_checkpoint(copied):
    shutil.rmtree(copied / "checkpoints" / "2")
    (copied / "checkpoints" / "3").rename(copied / "checkpoints" / "3.partial")
    with pytest.raises(ValueError) as error:
        load_meta(copied)
    one_sentence(error, copied / "checkpoints", "holds no complete checkpoint")


def with_kernel(params, shape):
    kernel = jax.ShapeDtypeStruct(shape, np.float32, sharding=params["head"].sharding)
    return params | {"dense": params["dense"] | {"kernel": kernel}}


def test_parts_of_another_model(saved, state):
    params = abstract(state.params)
    wrong = [
        (with_kernel(params, (16, 16)), "params.dense.kernel is (16, 32), wanted (16, 16)"),
        ({"dense": params["dense"]}, "params.head is (16, 64), wanted absent"),
        (params | {"tail": params["head"]}, "params.tail is absent, wanted (16, 64)"),
    ]
    for wanted, difference in wrong:
        with pytest.raises(ValueError) as error:
            load_parts(saved, {"params": wanted})
        one_sentence(error, saved, "another model", difference, "config it was trained with")


def test_many_differences_are_counted(saved, state):
    wanted = {name + "2": value for name, value in abstract(state.params).items()}
    with pytest.raises(ValueError) as error:
        load_parts(saved, {"params": wanted})
    one_sentence(error, "and 3 more")  # of three leaves that are absent and three that were not wanted


def test_parts_that_were_never_stored(tmp_path, mesh, state):
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(mesh, 1, init_rest=lambda key, params: {})[0], {})
    with pytest.raises(ValueError) as error:
        load_parts(tmp_path, {"clusters": abstract(state.clusters)})
    one_sentence(error, tmp_path, "another model", "clusters.usage is absent, wanted (8,)")


def test_resuming_with_another_model(saved, state):
    wanted = abstract(state)
    wanted = dataclasses.replace(wanted, params=with_kernel(wanted.params, (16, 16)))
    with Checkpointer(saved) as checkpoints, pytest.raises(ValueError) as error:
        checkpoints.restore(wanted)
    one_sentence(error, saved, "another model", "params.dense.kernel is (16, 32), wanted (16, 16)")


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGES = {
    "params/manifest.ocdbt": (truncate, "bytes instead of"),
    "params/_METADATA": (flip, "other bytes"),
    "meta/metadata": (Path.unlink, "is missing"),
    "checksums.json": (truncate, "cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(copied, state, name):
    folder = copied / "checkpoints" / "3"
    damage, said = DAMAGES[name]
    damage(folder / name)
    with pytest.raises(ValueError) as error:
        load_parts(copied, {"params": abstract(state.params)}) if "params" in name else load_meta(copied)
    one_sentence(error, folder, "damaged", name, said, "delete")
    with Checkpointer(copied) as checkpoints, pytest.warns(UserWarning, match=rf"3: {name} .*{said}.* from step 2"):
        step, _, meta = checkpoints.restore(abstract(state))
    assert step == 2 and meta == {"config": {"number": 2}}
    assert names_in(copied) == {"2", "3.damaged"}
    assert load_meta(copied) == {"config": {"number": 2}}


def test_no_whole_checkpoint_is_no_fresh_start(copied, state):
    for step in "23":
        flip(copied / "checkpoints" / step / "meta" / "metadata")
    with Checkpointer(copied) as checkpoints, pytest.raises(ValueError) as error:
        checkpoints.restore(abstract(state))
    one_sentence(error, "No checkpoint", copied, "3: meta/metadata", "2: meta/metadata", "another workdir")
    assert names_in(copied) == {"2", "3"}


def test_a_checkpoint_that_is_not_to_go_on_from_stays(saved, state):
    def check(meta):
        raise ValueError(f"not {meta['config']['number']}")

    with Checkpointer(saved) as checkpoints, pytest.raises(ValueError, match="^not 3$"):
        checkpoints.restore(abstract(state), check)
    assert names_in(saved) == {"2", "3"}


def test_a_full_disk_is_a_warning_and_leaves_what_is_there(copied, state, monkeypatch):
    free = shutil._ntuple_diskusage(10**9, 10**9, 1000)
    with Checkpointer(copied) as checkpoints:
        with monkeypatch.context() as patch, pytest.warns(UserWarning, match="step 4 .* lacks 1 MiB .* are whole"):
            patch.setattr(shutil, "disk_usage", lambda folder: free)
            checkpoints.save(4, state, {})
        with pytest.raises(OSError, match="step 4 could not be written .* make room"):
            checkpoints.wait()
        # The space was there when the writing began.
        with monkeypatch.context() as patch, pytest.warns(UserWarning, match="step 5 .*No space left on device"):
            patch.setattr(checksums, "write", lambda folder: os.write(os.open("/dev/full", os.O_WRONLY), b"all"))
            checkpoints.save(5, state, {})
            with pytest.raises(OSError, match="step 5"):
                checkpoints.wait()
        assert names_in(copied) == {"2", "3"}
        assert checkpoints.restore(abstract(state))[0] == 3
        checkpoints.save(6, state, {})
        checkpoints.wait()
    assert names_in(copied) == {"3", "6"}
