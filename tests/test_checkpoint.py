"""Checkpoints: bit-equal on another mesh, only the newest kept, and one clear sentence for what cannot be restored."""

import gc
import shutil

import jax
import numpy as np
import optax
import pytest

from loong_jax import sharding
from loong_jax.checkpoint import Checkpointer, load_meta, load_parts
from loong_jax.config import OptimizerConfig
from loong_jax.training.optimizer import make_optimizer
from loong_jax.training.state import TrainState, create_state

AXES = {"dense": {"kernel": ("embed", "mlp"), "scale": (None,)}, "head": ("embed", "vocab")}
SHAPES = {"dense": {"kernel": (16, 32), "scale": (32,)}, "head": (16, 64)}
OPTIMIZER = make_optimizer(OptimizerConfig(), 10)
UNREAD = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


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
        return TrainState(state.step + seed, optax.apply_updates(state.params, updates), opt_state, state.clusters)

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
        assert checkpoints.latest_step() is None
        for step in (1, 2):
            checkpoints.save(step, make_state(mesh, step)[0], {"config": {"number": step}})
        checkpoints.save(3, state, {"config": {"number": 3, "nested": {"names": ["a", "b"]}}})
    return workdir


@pytest.fixture
def copied(saved, tmp_path):
    """A copy to damage."""
    yield shutil.copytree(saved, tmp_path / "copied")
    gc.collect()  # what orbax leaves half-read complains here, and not in the middle of another test


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def test_a_state_comes_back_bit_for_bit_on_another_mesh(saved, state, make_mesh):
    other, shardings = make_state(make_mesh(data=2, fsdp=2, tensor=2), 0)
    assert np.any(np.asarray(other.params["head"]) != np.asarray(state.params["head"]))
    with Checkpointer(saved) as checkpoints:
        restored = checkpoints.restore(3, planned(other, shardings))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert int(restored.step) == 3

    def compare(restored, stored, place):
        assert restored.dtype == stored.dtype and restored.sharding == place
        np.testing.assert_array_equal(restored, stored)

    jax.tree.map(compare, restored, state, shardings)
    assert restored.params["dense"]["kernel"].addressable_shards[0].data.shape == (8, 16)


def test_only_the_newest_are_kept(saved):
    assert {folder.name for folder in (saved / "checkpoints").iterdir()} == {"2", "3"}
    with Checkpointer(saved) as checkpoints:
        assert checkpoints.latest_step() == 3


def test_the_state_of_an_older_step_is_still_its_own(saved, mesh, state):
    with Checkpointer(saved) as checkpoints:
        restored = checkpoints.restore(2, abstract(state))
    jax.tree.map(np.testing.assert_array_equal, restored, make_state(mesh, 2)[0])


def test_meta_is_that_of_the_newest(saved):
    assert load_meta(saved) == {"config": {"number": 3, "nested": {"names": ["a", "b"]}}}


def test_parts_alone(saved, state):
    parts = load_parts(saved, {"params": abstract(state.params), "clusters": abstract(state.clusters)})
    assert set(parts) == {"params", "clusters"}
    jax.tree.map(np.testing.assert_array_equal, parts, {"params": state.params, "clusters": state.clusters})


def test_an_unfinished_checkpoint_does_not_count(copied, state):
    """Orbax writes into a folder with another name, and renames it when all is there."""
    (copied / "checkpoints" / "3").rename(copied / "checkpoints" / "3.orbax-checkpoint-tmp")
    assert load_meta(copied) == {"config": {"number": 2}}
    with Checkpointer(copied) as checkpoints:
        assert checkpoints.latest_step() == 2
        checkpoints.save(3, state, {"config": {"number": 30}})
    assert load_meta(copied) == {"config": {"number": 30}}


def test_a_state_without_clusters(tmp_path, mesh):
    state, shardings = make_state(mesh, 1, init_rest=lambda key, params: {})
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
    with Checkpointer(tmp_path) as checkpoints:
        restored = checkpoints.restore(1, planned(state, shardings))
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
    (copied / "checkpoints" / "3").rename(copied / "checkpoints" / "3.orbax-checkpoint-tmp")
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
    wanted = TrainState(wanted.step, with_kernel(wanted.params, (16, 16)), wanted.opt_state, wanted.clusters)
    with Checkpointer(saved) as checkpoints, pytest.raises(ValueError) as error:
        checkpoints.restore(3, wanted)
    one_sentence(error, saved, "another model", "params.dense.kernel is (16, 32), wanted (16, 16)")


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage(folder, part):
    """Cut the files of one part of a checkpoint in half, as a full disk or a broken copy would."""
    if part == "data":
        for file in folder.glob("params/**/d/*"):
            truncate(file)
    else:
        truncate(folder / part)


@UNREAD
@pytest.mark.parametrize("part", ["data", "params/_METADATA", "params/manifest.ocdbt"])
def test_a_damaged_checkpoint_is_named(copied, state, part):
    folder = copied / "checkpoints" / "3"
    damage(folder, part)
    with pytest.raises(ValueError) as error:
        load_parts(copied, {"params": abstract(state.params)})
    one_sentence(error, folder, "damaged", "delete")
    with Checkpointer(copied) as checkpoints, pytest.raises(ValueError) as error:
        checkpoints.restore(3, abstract(state))
    one_sentence(error, folder, "damaged", "delete")
    shutil.rmtree(folder)  # as the sentence says
    assert load_meta(copied) == {"config": {"number": 2}}


@UNREAD
def test_damaged_meta_is_named(copied):
    damage(copied / "checkpoints" / "3", "meta/metadata")
    with pytest.raises(ValueError) as error:
        load_meta(copied)
    one_sentence(error, copied / "checkpoints" / "3", "damaged", "delete")
