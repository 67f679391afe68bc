"""The device mesh, the table from logical axes to mesh axes, and placement. The only owner of mesh-axis names.

Arrays are described by logical axis names ("embed", "mlp", "batch", ...); ``RULES`` says which mesh axis each one is
cut over. Imports only config.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from loong_jax.config import ConfigError, MeshConfig

MESH_AXES = ("data", "fsdp", "sequence", "tensor")

# Logical axis -> mesh axes. What is not named here, or is None in an array's axes, is whole on every device.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": ("sequence",),
    # A convolution cut in width over some axes and whole over others gets a wrong kernel gradient from XLA: use both.
    "width": ("sequence", "tensor"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "conv_out": ("fsdp",),
}

LogicalAxes = tuple[str | None, ...]


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """Build the four-axis mesh over ``devices`` (all of them by default), which may be of several slices.

    Several CPU devices compile all programs themselves from then on, with no compilation cache.

    Raises:
        ConfigError: the axis sizes do not multiply to the number of devices, or do not fit their slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, name) for name in MESH_AXES]
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if -1 in sizes or math.prod(sizes) != len(devices):
        asked = ", ".join(f"{name}={size}" for name, size in zip(MESH_AXES, sizes, strict=True))
        raise ConfigError(
            f"The mesh ({asked}) does not fit {len(devices)} devices: the sizes must multiply to {len(devices)}; "
            "set one axis to -1 to let it take the rest, e.g. --config.mesh.fsdp=-1."
        )
    num_slices = count_slices(devices)
    if config.num_slices not in (0, num_slices):
        raise ConfigError(
            f"mesh.num_slices={config.num_slices} is not possible: the {len(devices)} devices are of {num_slices} "
            f"slices; set --config.mesh.num_slices={num_slices}, or 0 for as many as there are."
        )
    if len(devices) > 1 and devices[0].platform == "cpu":
        _compile_anew()
    types = (AxisType.Auto,) * 4
    if num_slices == 1:
        return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=types, devices=devices)
    return Mesh(_grid_of_slices(sizes, num_slices, devices), MESH_AXES, axis_types=types)


def _compile_anew() -> None:
    """Turn JAX's compilation cache off.

    A program out of it has lost the order of collectives inside its loops and branches against those outside (each
    sequence of XLA's thunks gets a communicator resource of its own when it is read), so CPU devices, which all
    start what is ready, may wait for each other at different ones for ever.
    """
    if jax.config.jax_enable_compilation_cache:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # or the first answer, whether there is a cache, would stand


def count_slices(devices: list) -> int:
    """Of how many slices the devices are: groups that a fast network joins."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def _grid_of_slices(sizes: list[int], num_slices: int, devices: list) -> np.ndarray:
    """The devices in the mesh's shape: ``data``, else ``fsdp``, runs across slices in its slow part."""
    crossing = next((axis for axis in ("data", "fsdp") if sizes[MESH_AXES.index(axis)] % num_slices == 0), None)
    if crossing is None:
        raise ConfigError(
            f"The {num_slices} slices divide neither mesh.data={sizes[0]} nor mesh.fsdp={sizes[1]}, and one of these "
            f"must run across them: set --config.mesh.data={num_slices}, or a multiple of it."
        )
    across = [num_slices if axis == crossing else 1 for axis in MESH_AXES]
    within = [size // slices for size, slices in zip(sizes, across, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def partition_spec(axes: LogicalAxes) -> PartitionSpec:
    """Translate logical axes into a PartitionSpec by ``RULES``."""
    unknown = [axis for axis in axes if axis is not None and axis not in RULES and axis != "layers"]
    if unknown:
        raise ValueError(f"Logical axis {unknown[0]!r} is not in sharding.RULES: {', '.join(RULES)}.")
    entries = [RULES.get(axis) if axis is not None else None for axis in axes]
    used = [name for entry in entries if entry for name in entry]
    if len(used) != len(set(used)):
        raise ValueError(f"Logical axes {axes} use a mesh axis twice: {entries}.")
    return PartitionSpec(*entries)


def num_parts(mesh: Mesh, axis: str | None) -> int:
    """Into how many parts a logical axis is cut."""
    return math.prod(mesh.shape[mesh_axis] for mesh_axis in RULES.get(axis, ()))


def named_sharding(mesh: Mesh, axes: LogicalAxes, shape: tuple[int, ...], name: str = "array") -> NamedSharding:
    """The sharding of an array of ``shape`` whose axes are ``axes``.

    Raises:
        ConfigError: a dimension is not a multiple of the devices it is cut over; ``name`` says which array.
    """
    if len(axes) != len(shape):
        raise ValueError(f"{name} has shape {shape} but logical axes {axes}.")
    for dim, (size, axis) in enumerate(zip(shape, axes, strict=True)):
        parts = num_parts(mesh, axis)
        if size % parts:
            raise ConfigError(
                f"{name} of shape {shape} cannot be cut into {parts} along axis {dim} ({axis}, mesh axes "
                f"{', '.join(RULES[axis])}): choose mesh sizes that divide {size}, or change the size."
            )
    return NamedSharding(mesh, partition_spec(axes))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def tree_shardings(mesh: Mesh, abstract: Any, axes: Any) -> Any:
    """Shardings for a tree of arrays or ShapeDtypeStructs, given a tree of logical axes of the same structure."""
    paths = jax.tree_util.tree_flatten_with_path(abstract)[0]
    axes_leaves = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
    leaves = [
        named_sharding(mesh, leaf_axes, leaf.shape, jax.tree_util.keystr(path, simple=True, separator="."))
        for (path, leaf), leaf_axes in zip(paths, axes_leaves, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Cut the activation ``x`` by its logical axes; outside a mesh (``jax.set_mesh``) it is returned as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes))


def manual_axes(*axes: str) -> tuple[str, ...]:
    """The mesh axes that logical axes are cut over, for collectives inside ``map_shards``; none outside a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return () if mesh.empty else tuple(name for axis in axes for name in RULES[axis])


def current_parts(axis: str) -> int:
    """Into how many parts the mesh in use (``jax.set_mesh``) cuts a logical axis; 1 outside a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else num_parts(mesh, axis)


def current_platform() -> str:
    """What the mesh in use is made of, whether or not it is at hand; outside one, this machine: "cpu", "gpu", "tpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def map_shards(function: Callable, in_axes: tuple[LogicalAxes, ...], out_axes: Any) -> Callable:
    """Let every device run ``function`` on its own parts of the arguments; outside a mesh, the function itself.

    ``out_axes`` are the logical axes of the result, or a tree of them. What is a tree under one entry has the same
    throughout.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return function
    in_specs = tuple(map(partition_spec, in_axes))
    out_specs = jax.tree.map(partition_spec, out_axes, is_leaf=_is_axes)
    # Kernels do not say over which axes their results vary, so this cannot be checked.
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _is_axes(value: Any) -> bool:
    return type(value) is tuple and all(axis is None or isinstance(axis, str) for axis in value)


def gathered(tree: Any) -> Any:
    """The results ``tree`` of a jitted function, whole on every device, so that every process can fetch them."""
    return jax.tree.map(lambda x: constrain(x, *(None,) * x.ndim), tree)


def check_batch(mesh: Mesh, batch_size: int, or_else: str = "") -> None:
    """Raise ConfigError where the rows of a batch cannot be cut over ``mesh``; ``or_else`` is what would help, too."""
    parts = num_parts(mesh, "batch")
    if batch_size % parts:
        rows, fewer = parts * max(1, round(batch_size / parts)), math.gcd(batch_size, parts)
        raise ConfigError(
            f"train.batch_size={batch_size} cannot be cut into {parts} parts (mesh.data x mesh.fsdp): use "
            f"--config.train.batch_size={rows}, or a mesh that cuts it into fewer, as --config.mesh.data=1 "
            f"--config.mesh.fsdp={fewer} --config.mesh.tensor=-1{or_else}."
        )


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): which share of every batch this process reads, and how many shares there are.

    Processes whose devices hold the same rows, where another axis than the batch's runs across them, read the same.

    Raises:
        ConfigError: the processes' rows overlap in part.
    """
    parts = num_parts(mesh, "batch")
    rows: dict[int, set[int]] = {}
    for device, (part,) in NamedSharding(mesh, partition_spec(("batch",))).devices_indices_map((parts,)).items():
        rows.setdefault(device.process_index, set()).add(part.indices(parts)[0])
    shares = sorted({tuple(sorted(own)) for own in rows.values()})
    if len({len(share) for share in shares}) > 1 or sum(map(len, shares)) != parts:
        raise ConfigError(
            f"The rows of a batch, cut into {parts}, do not part evenly among the processes: choose mesh.data x "
            f"mesh.fsdp as a multiple or a divisor of {len(rows)}."
        )
    return shares.index(tuple(sorted(rows[jax.process_index()]))), len(shares)


def shard_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Place a host batch on the mesh, cut over its first axis.

    Every process passes the rows of its ``batch_share``; arrays are [rows, ...].
    """
    spec = partition_spec(("batch",))
    return {
        name: jax.make_array_from_process_local_data(NamedSharding(mesh, spec), value) for name, value in batch.items()
    }
