"""Mesh sizes for a training of the language model, from its shapes, the devices and their memory."""

import dataclasses
import itertools

import jax

from loong_jax import sharding
from loong_jax.chips import chip_of, host_memory
from loong_jax.config import ConfigError, MeshConfig, TransformerConfig
from loong_jax.models.transformer import padded_vocab

_HOST_DEVICES = 8  # tensor parallelism stays among so many devices, which one host or its neighbourhood joins
_USABLE = 0.9  # share of the memory; the rest is for what the estimate leaves out
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What a training step works on, in ``accumulate`` parts; ``itemsize`` is bytes of the dtype it computes in."""

    model: TransformerConfig
    batch_size: int
    length: int
    itemsize: int = 2
    accumulate: int = 1


@dataclasses.dataclass(frozen=True)
class Devices:
    """What there is: how many devices, bytes of memory of each, and over how many slices they are spread."""

    count: int
    memory: int
    num_slices: int = 1


@dataclasses.dataclass(frozen=True)
class MeshNeeds:
    """Bytes on each device of one mesh, estimated."""

    mesh: MeshConfig
    state: float  # parameters, two moments and gradients in float32, and a copy to compute with
    saved: float  # what the layers keep for the backward pass
    layer: float  # one gathered layer and the next, and what one layer works on

    @property
    def total(self) -> float:
        """Bytes of all three together."""
        return self.state + self.saved + self.layer

    def __str__(self) -> str:
        sizes = " x ".join(f"{size} {axis}" for axis, size in _sizes(self.mesh).items() if size > 1) or "one device"
        parts = ", ".join(f"{name} {getattr(self, name) / _GIB:.2f}" for name in ("state", "saved", "layer"))
        return f"{sizes} with about {self.total / _GIB:.2f} GiB on each device ({parts})"


def choose_mesh(shapes: Shapes, devices: Devices) -> MeshNeeds:
    """The mesh that fits with the fewest kinds of parallelism: fsdp (data across slices), then tensor, then sequence.

    Raises:
        ConfigError: no mesh of these devices divides the shapes, or none has the memory; says what would help.
    """
    possible = [estimate_needs(shapes, mesh) for mesh in possible_meshes(shapes, devices)]
    if not possible:
        model, nearest = shapes.model, devices.count * max(1, round(shapes.batch_size / devices.count))
        raise ConfigError(
            f"No mesh of {devices.count} devices divides a batch of {shapes.batch_size} rows, {shapes.length} ids, "
            f"{model.model_dim} dimensions and {model.num_heads} heads: use --config.train.batch_size={nearest}."
        )
    fitting = [needs for needs in possible if needs.total <= _USABLE * devices.memory]
    if not fitting:
        best = min(possible, key=lambda needs: needs.total)
        raise ConfigError(
            f"No mesh of {devices.count} devices fits: the best is {best}, and {_USABLE:.0%} of "
            f"{devices.memory / _GIB:.2f} GiB can be used; {_remedies(shapes, devices)}."
        )
    return fitting[0]


def present_devices(devices: list | None = None) -> Devices:
    """The devices that JAX sees.

    Raises:
        ConfigError: their memory is not known.
    """
    devices = jax.devices() if devices is None else devices
    return Devices(len(devices), _memory(jax.local_devices()[0]), sharding.count_slices(devices))


def possible_meshes(shapes: Shapes, devices: Devices) -> list[MeshConfig]:
    """All that divide the shapes, the preferred first."""
    divisors = [size for size in range(1, devices.count + 1) if devices.count % size == 0]
    meshes = [
        MeshConfig(data, fsdp, sequence, devices.count // (data * fsdp * sequence))
        for data, fsdp, sequence in itertools.product(divisors, repeat=3)
        if devices.count % (data * fsdp * sequence) == 0
    ]

    def preference(mesh: MeshConfig) -> tuple:
        return mesh.sequence, mesh.tensor, mesh.data % devices.num_slices != 0, mesh.data

    return sorted((mesh for mesh in meshes if _divides(mesh, shapes, devices.num_slices)), key=preference)


def _divides(mesh: MeshConfig, shapes: Shapes, num_slices: int) -> bool:
    model = shapes.model
    by_tensor = (model.num_heads, model.num_kv_heads, model.mlp_dim, padded_vocab(model), _HOST_DEVICES)
    rows = mesh.data * mesh.fsdp
    pairs = [
        (shapes.batch_size, rows * shapes.accumulate),
        (model.model_dim, mesh.fsdp),
        (shapes.length, mesh.sequence),
    ]
    pairs += [(size, mesh.tensor) for size in by_tensor]
    crosses = mesh.data % num_slices == 0 or mesh.fsdp % num_slices == 0
    return crosses and all(size % parts == 0 for size, parts in pairs)


def estimate_needs(shapes: Shapes, mesh: MeshConfig) -> MeshNeeds:
    """What a device needs on ``mesh``, whose sizes are all given."""
    model, itemsize = shapes.model, shapes.itemsize
    d, f, kv = model.model_dim, model.mlp_dim, model.num_kv_heads * model.head_dim
    layer_params = 2 * d * d + 2 * d * kv + 3 * d * f
    params = model.num_layers * layer_params + 2 * padded_vocab(model) * d
    tokens = shapes.batch_size / shapes.accumulate * shapes.length / (mesh.data * mesh.fsdp * mesh.sequence)
    # Values that a layer keeps for each token: (whole on every device of the tensor axis, cut over it).
    whole, cut = {
        "offload": (0, 0),  # its input, in the host's memory
        "full": (d, 0),  # its input
        "dots": (3 * d, d + 2 * kv + 2 * f),  # and its projections
        "none": (9 * d, 3 * d + 3 * kv + 5 * f),  # and what lies between them; norms in float32
    }[model.remat]
    return MeshNeeds(
        mesh,
        state=params * (16 + itemsize) / (mesh.fsdp * mesh.tensor),
        saved=tokens * model.num_layers * itemsize * (whole + cut / mesh.tensor),
        # Values and their gradients: both times, what remat="none" would keep of this layer.
        layer=2 * itemsize * (layer_params / mesh.tensor + tokens * (9 * d + (3 * d + 3 * kv + 5 * f) / mesh.tensor)),
    )


def _remedies(shapes: Shapes, devices: Devices) -> str:
    """What would make the training fit, each by itself, nearest first."""

    def fits(shapes: Shapes, devices: Devices) -> bool:
        meshes = possible_meshes(shapes, devices)
        return any(estimate_needs(shapes, mesh).total <= _USABLE * devices.memory for mesh in meshes)

    remedies = []
    model = dataclasses.replace(shapes.model, remat="full")
    if model != shapes.model and fits(dataclasses.replace(shapes, model=model), devices):
        remedies.append("--config.model.remat=full")
    smaller = (size for size in range(shapes.batch_size - 1, 0, -1))
    batch = next((n for n in smaller if fits(dataclasses.replace(shapes, batch_size=n), devices)), None)
    if batch:
        remedies.append(f"--config.train.batch_size={batch}")
    doubled = (devices.count * 2**power for power in range(1, 8))
    count = next((n for n in doubled if fits(shapes, dataclasses.replace(devices, count=n))), None)
    if count:
        remedies.append(f"{count} devices")
    return "use " + " or ".join(remedies) if remedies else "use a smaller model, or devices with more memory"


def _sizes(mesh: MeshConfig) -> dict[str, int]:
    return {axis: getattr(mesh, axis) for axis in ("data", "fsdp", "sequence", "tensor")}


def _memory(device: jax.Device) -> int:
    """Bytes of memory of one device: what it says itself, what is known of its kind, or its part of the host's."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    if chip := chip_of(device.device_kind):
        return int(chip.memory_gib * _GIB)
    if device.platform == "cpu":
        return host_memory() // jax.local_device_count()
    raise ConfigError(f"The memory of a {device.device_kind!r} is not known: set the sizes of config.mesh instead.")
