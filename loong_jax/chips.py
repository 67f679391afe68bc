"""What the makers say of their chips; one row is one JAX device."""

import dataclasses
import os


@dataclasses.dataclass(frozen=True)
class Chip:
    """``device_kinds`` are JAX's names of it; rates are a second's, of dense bfloat16 work and without overheads."""

    memory_gib: float
    flops: float
    memory_bytes: float
    link_bytes: float  # between chips, all links of a chip together
    device_kinds: tuple[str, ...]


# TPUs: cloud.google.com/tpu/docs, a page for each version. GPUs: NVIDIA's data sheets, without sparsity, with NVLink.
CHIPS = {
    "v4": Chip(32, 275e12, 1228e9, 300e9, ("TPU v4",)),
    "v5e": Chip(16, 197e12, 819e9, 200e9, ("TPU v5 lite", "TPU v5e")),
    "v5p": Chip(95, 459e12, 2765e9, 600e9, ("TPU v5", "TPU v5p")),
    "v6e": Chip(32, 918e12, 1640e9, 448e9, ("TPU v6 lite", "TPU v6e")),
    "a100": Chip(80, 312e12, 2039e9, 300e9, ("NVIDIA A100-SXM4-80GB",)),
    "h100": Chip(80, 989e12, 3350e9, 450e9, ("NVIDIA H100 80GB HBM3",)),
    "h200": Chip(141, 989e12, 4800e9, 450e9, ("NVIDIA H200",)),
}


def host_memory() -> int:
    """Bytes of this machine's memory, which its CPU devices share."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX calls ``device_kind``; None where it is not known, rather than a similar one."""
    return next((chip for chip in CHIPS.values() if device_kind in chip.device_kinds), None)
