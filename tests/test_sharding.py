"""The mesh over devices of one or several slices. The devices are stand-ins: a CPU has no slices."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType

from loong_jax import sharding
from loong_jax.config import ConfigError, MeshConfig


@dataclasses.dataclass(frozen=True)
class Device:
    """As much of a device as laying out a mesh asks for."""

    id: int
    slice_index: int
    process_index: int
    device_kind: str = "NVIDIA H200"
    platform: str = "gpu"


def devices_of(num_slices: int, per_slice: int) -> list[Device]:
    """Slices in turns, as nothing promises their order."""
    return [Device(i, i % num_slices, i % num_slices) for i in range(num_slices * per_slice)]


@pytest.mark.parametrize(
    ("config", "num_slices", "crossing"),
    [
        (MeshConfig(data=2), 2, "data"),
        (MeshConfig(data=4, fsdp=2, tensor=2), 2, "data"),
        (MeshConfig(), 2, "fsdp"),
        (MeshConfig(fsdp=4, sequence=2, tensor=2), 4, "fsdp"),
        (MeshConfig(data=4, tensor=4, num_slices=4), 4, "data"),
    ],
)
def test_one_axis_runs_across_slices_and_the_others_stay_within(config, num_slices, crossing):
    devices = devices_of(num_slices, 16 // num_slices)
    mesh = sharding.make_mesh(config, devices)
    assert mesh.axis_names == sharding.MESH_AXES and set(mesh.axis_types) == {AxisType.Auto}
    assert sorted(device.id for device in mesh.devices.flat) == list(range(16))
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    axis = sharding.MESH_AXES.index(crossing)
    # Along the crossing axis the slice changes num_slices - 1 times, so that each one's part is in one piece.
    along = np.moveaxis(slices, axis, 0).reshape(slices.shape[axis], -1)
    assert (np.diff(along, axis=0) != 0).sum(axis=0).tolist() == [num_slices - 1] * along.shape[1]
    assert (along == along[:, :1]).all()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (MeshConfig(num_slices=3), r"mesh.num_slices=3 .*16 devices are of 2 slices; .*num_slices=2"),
        (MeshConfig(fsdp=1, tensor=16), r"2 slices divide neither mesh.data=1 nor mesh.fsdp=1.*mesh.data=2"),
        (MeshConfig(data=3), "does not fit 16 devices"),
    ],
)
def test_a_mesh_that_does_not_fit_the_slices(config, said):
    with pytest.raises(ConfigError, match=said) as error:
        sharding.make_mesh(config, devices_of(2, 8))
    assert "\n" not in str(error.value)


def test_one_process_reads_whole_batches(make_mesh):
    for mesh in (make_mesh(data=2, fsdp=4), make_mesh(tensor=8), make_mesh(sequence=2)):
        assert sharding.batch_share(mesh) == (0, 1)


@pytest.fixture
def compilation_cache_folder(tmp_path):
    """JAX's compilation cache, on and empty; afterwards it is as it was."""
    before = {name: getattr(jax.config, name) for name in ("jax_enable_compilation_cache", "jax_compilation_cache_dir")}
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compilation_cache.reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_several_cpu_devices_leave_the_compilation_cache_alone(compilation_cache_folder, make_mesh):
    """Programs that come out of it may wait for ever there."""
    make_mesh(fsdp=1)
    jax.jit(lambda x: x + 1)(np.ones(3)).block_until_ready()
    [cached] = compilation_cache_folder.glob("*-cache")
    make_mesh(fsdp=2)
    jax.jit(lambda x: x + 2)(np.ones(3)).block_until_ready()
    assert list(compilation_cache_folder.glob("*-cache")) == [cached]
