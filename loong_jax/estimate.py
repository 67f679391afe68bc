"""What a full-size training needs, from the TPU compiler and without a TPU."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from rich.console import Console

from loong_jax import sharding
from loong_jax.config import ConfigError, EstimateJob, TokenizerJob
from loong_jax.evaluation.report import format_table, write_report
from loong_jax.tokenizer import autoencoder
from loong_jax.tokenizer.perceptual import lpips_shapes
from loong_jax.training.mesh_choice import MEMORY_GIB
from loong_jax.training.optimizer import make_optimizer
from loong_jax.training.tokenizer_step import create_tokenizer_state, make_train_step


def run_estimate(job: EstimateJob, workdir: Path) -> list[dict]:
    """Compile the training step for every topology and batch size; prints a table and writes results.json.

    Raises:
        ConfigError: the topology is unknown, or the extra [tpu] is not installed.
    """
    console, rows = Console(soft_wrap=True), []
    for topology in job.topology.split("|"):
        devices = _devices(topology.strip())
        available = MEMORY_GIB[topology.strip().split(":")[0]]
        for batch_size in job.batch_sizes:
            console.print(f"compiling for {topology}, {batch_size} clips in a batch", highlight=False)
            rows.append({"topology": topology, "devices": len(devices), "batch": batch_size})
            rows[-1] |= _memory(job.tokenizer, devices, batch_size)
            needed = rows[-1]["GiB a device"]
            rows[-1] |= {"of": available, "fits": "yes" if needed is not None and needed < available else "no"}
            write_report(workdir / "results.json", {"rows": rows})
            if rows[-1]["fits"] == "no":
                break
    columns = ("topology", "devices", "batch", "state GiB", "work GiB", "GiB a device", "of", "fits")
    console.print(format_table(rows, columns), highlight=False)
    return rows


def _devices(topology: str) -> list:
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU to ask
    if topology.split(":")[0] not in MEMORY_GIB:
        allowed = ", ".join(MEMORY_GIB)
        raise ConfigError(f"topology={topology!r} is not possible: write CHIP:LAYOUT, e.g. 'v5e:2x4', of {allowed}.")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:  # of many types: no library, no such layout
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"The TPU compiler does not know topology={topology!r} ({reason}): if it is missing, install it with "
            "pip install 'loong_jax[tpu]'."
        ) from error


def _memory(job: TokenizerJob, devices: list, batch_size: int) -> dict[str, Any]:
    """GiB on each device of the compiled step: what stays (state and batch), what it needs while it works, and both."""
    mesh = sharding.make_mesh(job.mesh, devices)
    parts = sharding.num_parts(mesh, "batch")
    if batch_size % parts:
        raise ConfigError(f"batch_sizes: {batch_size} clips cannot be shared by {parts} devices: use a multiple.")
    # What the backend of this machine would choose is not what the TPU would.
    job = dataclasses.replace(job, tokenizer=dataclasses.replace(job.tokenizer, compute_dtype="bfloat16"))
    optimizer = make_optimizer(job.optimizer, job.train.num_steps, autoencoder.matrix_axes)
    state, shardings = create_tokenizer_state(job, optimizer, mesh, is_abstract=True)
    size, frames = job.data.frame_size, job.data.num_frames
    rows = sharding.named_sharding(mesh, ("batch",) + (None,) * 4, (batch_size, frames, size, size, 3))
    video = jax.ShapeDtypeStruct((batch_size, frames, size, size, 3), jnp.uint8, sharding=rows)
    weights = None
    if job.loss.perceptual_weight:
        whole = sharding.replicated(mesh)
        weights = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), lpips_shapes())
    step = make_train_step(job, optimizer, shardings, mesh)
    with jax.set_mesh(mesh):
        try:
            compiled = step.lower(state, {"video": video}, lpips_weights=weights).compile()
        except jax.errors.JaxRuntimeError as error:
            if "memory" not in str(error).lower():
                raise
            return {"state GiB": None, "work GiB": None, "GiB a device": None}
    memory = compiled.memory_analysis()
    state_bytes, work_bytes = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    new_bytes = memory.output_size_in_bytes - memory.alias_size_in_bytes
    gib = {"state GiB": state_bytes, "work GiB": work_bytes + new_bytes}
    gib["GiB a device"] = sum(gib.values())
    return {name: round(value / 2**30, 2) for name, value in gib.items()}
