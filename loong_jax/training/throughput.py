"""How fast a training runs: work per second, what the host waits for, memory, and the share of the chips' peak."""

import contextlib
import dataclasses
import math
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from loong_jax.chips import chip_of
from loong_jax.config import TransformerConfig


def training_flops_per_token(config: TransformerConfig, length: int, all_columns: bool = False) -> float:
    """FLOPs that the model itself asks for to train on one token (PaLM, arXiv 2204.02311, appendix B).

    Forward and backward take 6 for each parameter of a matrix product: the embedding is a lookup, and the head has only
    the columns of video and special ids, unless all are scored. Attention takes 12 x layers x heads x head_dim for each
    place that is seen, which in a sequence of ``length`` is half of it on average (PaLM counts all of it).
    Rematerialization is not work of the model and is not counted.
    """
    heads, head_dim = config.num_heads, config.head_dim
    projections = config.model_dim * head_dim * (2 * heads + 2 * config.num_kv_heads)
    layer = projections + 3 * config.model_dim * config.mlp_dim
    head = config.model_dim * (config.vocab_size - (0 if all_columns else config.num_text_ids))
    attention = 12 * config.num_layers * heads * head_dim * length / 2
    return 6 * (config.num_layers * layer + head) + attention


@dataclasses.dataclass(frozen=True)
class Work:
    """What the first two axes of a batch count, e.g. "tokens", padding included, and the model's FLOPs for one."""

    unit: str
    flops_per_unit: float = 0.0  # 0: not known


@dataclasses.dataclass(frozen=True)
class Done:
    """Sums since the training started."""

    steps: int = 0
    units: int = 0
    data_seconds: float = 0.0


class Throughput:
    """Measures a training between logged steps, from one's end to the next one's end.

    Compiling is left out, as are pauses: evaluations, checkpoints, and the profiler's own work.
    """

    def __init__(self, work: Work, mesh: Mesh):
        self._work = work
        self._device = mesh.local_mesh.devices.flat[0]
        chip = chip_of(self._device.device_kind)
        self._peak_flops = chip.flops * mesh.size if chip else 0.0
        self._paused = 0.0
        self._before: tuple[float, Done] | None = None
        self.done = Done()

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        waited = self.done.data_seconds + time.perf_counter() - start
        self.done = dataclasses.replace(self.done, data_seconds=waited)

    @contextlib.contextmanager
    def paused(self, state: Any) -> Iterator[None]:
        """Wait until ``state`` is there, then let the clock stand still."""
        jax.block_until_ready(state)
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def count(self, batch: dict[str, jax.Array]) -> None:
        """Count a step that was handed to the devices; the first one starts the clock, for handing it out compiles."""
        if self._before is None:
            self._before = self._clock(), self.done
        units = math.prod(jax.tree.leaves(batch)[0].shape[:2])
        sums = self.done
        self.done = dataclasses.replace(sums, steps=sums.steps + 1, units=sums.units + units)

    def measure(self, done: Done) -> dict[str, float]:
        """Rates since the last call; ``done`` was taken after the step that has just ended.

        Returns:
            Steps, units and, where they are known, FLOPs of the model per second over all devices; ``mfu``, their share
            of the devices' bfloat16 peak, where that is known; ``step_seconds``, and of them ``data_seconds`` in which
            the host waited for a batch and placed it: where the two are close, data is too slow, else devices worked
            meanwhile; ``peak_memory_gib`` so far of one device, or of the process where devices do not say.
        """
        now, (last, before) = self._clock(), self._before
        self._before = now, done
        seconds, steps = now - last, done.steps - before.steps
        rate = (done.units - before.units) / seconds
        measured = {
            "steps_per_second": steps / seconds,
            f"{self._work.unit}_per_second": rate,
            "step_seconds": seconds / steps,
            "data_seconds": (done.data_seconds - before.data_seconds) / steps,
            "peak_memory_gib": _peak_memory(self._device) / 2**30,
        }
        if self._work.flops_per_unit:
            measured["model_flops_per_second"] = rate * self._work.flops_per_unit
            if self._peak_flops:
                measured["mfu"] = measured["model_flops_per_second"] / self._peak_flops
        return measured

    def _clock(self) -> float:
        return time.perf_counter() - self._paused


def _peak_memory(device: jax.Device) -> int:
    stats = device.memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
