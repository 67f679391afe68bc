"""What a job needs of devices that need not be there, from their own compiler: memory, traffic, and time at best."""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from jax.experimental import topologies
from jax.sharding import Mesh
from rich.console import Console

from loong_jax import sharding
from loong_jax.chips import CHIPS, Chip, host_memory
from loong_jax.compiled import collectives, memory_of
from loong_jax.config import ConfigError, EstimateJob, LanguageModelJob, TokenizerJob
from loong_jax.config_dict import load_job
from loong_jax.evaluation.report import format_table, write_report
from loong_jax.programs import (
    Program,
    bytes_on_device,
    lower_decoding,
    lower_model_training,
    lower_tokenizer_training,
)
from loong_jax.training.lm_job import row_length
from loong_jax.training.throughput import training_flops_per_token

_GIB = 2**30
_COLUMNS = ("experiment", "target", "devices", "batch", "params", "rest", "work", "GiB", "of", "fits")
_COLUMNS += ("aliased", "step s", "MFU")
_MOST_ROWS = 64  # of a device, that are looked at
_DEPTHS = (2, 4)  # layers that are compiled unrolled for the compiler's time

Experiment = TokenizerJob | LanguageModelJob


def run_estimate(job: EstimateJob, workdir: Path) -> list[dict]:
    """Compile every experiment for every target; prints a table and writes results.json as rows come.

    Memory is that of one device in GiB: ``params``, ``rest`` (optimizer and the like, or the cache of sampling), and
    ``work``, all that a step needs besides; ``aliased`` is what it changes in place. ``step s`` is the least time that
    the chip's rates allow, the longer of the model's matrix products, with what is computed again, and the collectives;
    ``MFU`` is what that makes: no estimate of what will be measured but a bound of it.

    Raises:
        ConfigError: a target or experiment is not known, or the extra [tpu] is not installed.
    """
    console, rows = Console(soft_wrap=True), []
    jax.config.update("jax_optimization_level", job.optimization_level or "UNKNOWN")
    for experiment in job.experiment.split("|"):
        training = _changed(load_job(job.configs, experiment.strip()), job)
        for target in job.target.split("|"):
            name = target.strip()
            mesh, chip = sharding.make_mesh(job.mesh, _devices(name)), CHIPS.get(name.split(":")[0])
            compile_batch = _Compiler(job, training, mesh, chip, console)
            found = []
            for row in _search(job, sharding.num_parts(mesh, "batch"), compile_batch):
                found.append({"experiment": experiment.strip(), "target": name, "devices": mesh.size, **row})
                write_report(workdir / "results.json", {"rows": rows + found})
            rows += found if job.batch_sizes else [_largest(found)]
            write_report(workdir / "results.json", {"rows": rows})
    console.print(format_table(rows, _COLUMNS), highlight=False)
    return rows


def _search(job: EstimateJob, parts: int, compile_batch: Callable[[int], dict]) -> Iterator[dict]:
    """Rows of the batches asked for until one does not fit, or of those on the way to the largest that does."""
    for batch_size in job.batch_sizes:
        row = compile_batch(batch_size)
        yield row
        if row["fits"] == "no":
            return
    if job.batch_sizes:
        return
    first = compile_batch(parts)
    yield first
    if first["fits"] == "no":
        return
    second = compile_batch(2 * parts)
    yield second
    if second["fits"] == "no":
        return
    each = max(second["GiB"] - first["GiB"], 1e-3)
    most = min(int((first["of"] - first["GiB"]) / each) + 1, _MOST_ROWS)
    for count in range(most, 2, -max(most // 8, 1)):
        row = compile_batch(count * parts)
        yield row
        if row["fits"] == "yes":
            return


def _largest(rows: list[dict]) -> dict:
    fitting = [row for row in rows if row["fits"] == "yes"]
    return max(fitting or rows[:1], key=lambda row: row["batch"])


class _Compiler:
    """Batch size -> what the compiler says of the program, as a row of the table."""

    def __init__(self, job: EstimateJob, training: Experiment, mesh: Mesh, chip: Chip | None, console: Console):
        self._job, self._training, self._mesh, self._chip, self._console = job, training, mesh, chip, console
        self._available = chip.memory_gib if chip else host_memory() / _GIB / mesh.size

    def __call__(self, batch_size: int) -> dict:
        title = f"{self._job.step} of {self._training.task}, batch {batch_size}, on {self._mesh.size} devices"
        self._console.print(f"compiling the {title}", highlight=False)
        program = self._lower(self._training, batch_size)
        params, rest = bytes_on_device(program.params) / _GIB, bytes_on_device(program.rest) / _GIB
        row = {"batch": batch_size, "params": params, "rest": rest, "of": self._available}
        try:
            compiled = program.lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "memory" not in str(error).lower():
                raise
            used = re.search(r"Used ([\d.]+)G of", str(error))
            return row | {"GiB": float(used.group(1)) if used else None, "fits": "no"}
        memory, sent = memory_of(compiled), collectives(compiled.as_text())
        row |= {
            "work": memory.work / _GIB,
            "GiB": memory.total / _GIB,
            "fits": "yes" if memory.total / _GIB < self._available else "no",
            "aliased": memory.aliased / _GIB,
            "collectives": {kind: size / _GIB for kind, size in sorted(sent.items())},
        }
        listed = ", ".join(f"{kind} {size:.3f}" for kind, size in row["collectives"].items()) or "none"
        self._console.print(f"  GiB through each device and run: {listed}", highlight=False)
        if self._chip and isinstance(self._training, LanguageModelJob) and self._job.step == "training":
            row |= self._times(batch_size, sum(sent.values()))
        return row

    def _lower(self, training: Experiment, batch_size: int) -> Program:
        if isinstance(training, TokenizerJob):
            return lower_tokenizer_training(training, self._mesh, batch_size)
        if self._job.step == "sampling":
            return lower_decoding(training, self._mesh, batch_size, self._job.decoding)
        return lower_model_training(training, self._mesh, batch_size, self._job.length)

    def _times(self, batch_size: int, sent: int) -> dict:
        """Seconds of a step at the chip's rates, tokens a second and MFU that follow, and the compiler's own guess."""
        training = self._training
        length = self._job.length or row_length(training, training.tokenizer, max(training.data.pack, 1))
        tokens = batch_size * length
        needed = training_flops_per_token(training.model, length, training.loss.all_columns) * tokens
        # Full rematerialization computes the layers' forward pass again: 4 passes for 3.
        again = 4 / 3 if training.model.remat in ("full", "offload") else 1
        computing = needed * again / (self._mesh.size * self._chip.flops)
        sending = sent / self._chip.link_bytes
        seconds = max(computing, sending)
        row = {
            "computing s": computing,
            "sending s": sending,
            "step s": seconds,
            "tokens/s": tokens / seconds,
            "MFU": needed / (seconds * self._mesh.size * self._chip.flops),
        }
        if self._job.compiler_time:
            row["compiler s"] = self._compiler_seconds(batch_size)
        return row

    def _compiler_seconds(self, batch_size: int) -> float | None:
        """Its guess of two shallow models without a loop, carried on to all layers; None where it makes no sense."""
        guesses = []
        for depth in _DEPTHS:
            model = dataclasses.replace(self._training.model, num_layers=depth, scan_layers=False)
            program = self._lower(dataclasses.replace(self._training, model=model), batch_size)
            guesses.append(program.lowered.compile().cost_analysis().get("optimal_seconds", -1.0))
        self._console.print(f"  the compiler's seconds of {_DEPTHS} layers: {guesses}", highlight=False)
        if not 0 < guesses[0] < guesses[1]:
            return None
        of_layer = (guesses[1] - guesses[0]) / (_DEPTHS[1] - _DEPTHS[0])
        return guesses[0] + of_layer * (self._training.model.num_layers - _DEPTHS[0])


def _changed(training: Experiment, job: EstimateJob) -> Experiment:
    """The experiment as ``job`` wants it; TPUs compute in bfloat16 whatever this machine would choose."""
    is_model = isinstance(training, LanguageModelJob)
    if not is_model and (not isinstance(training, TokenizerJob) or job.step == "sampling"):
        allowed = "of the language model, e.g. stage3:7b" if job.step == "sampling" else "a training, e.g. stage3:7b"
        raise ConfigError(f"experiment={job.experiment!r} is not possible for step {job.step!r}: name one {allowed}.")
    dtype = "float32" if job.target.strip() == "cpu" else "bfloat16"
    if not is_model:
        return dataclasses.replace(training, tokenizer=dataclasses.replace(training.tokenizer, compute_dtype=dtype))
    asked = {"remat": job.remat, "attention": job.attention}
    chosen = {name: value for name, value in asked.items() if value}
    return dataclasses.replace(training, model=dataclasses.replace(training.model, compute_dtype=dtype, **chosen))


def _devices(target: str) -> list:
    if target == "cpu":
        return jax.devices("cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU to ask
    tpus = [name for name in CHIPS if name.startswith("v")]
    if target.split(":")[0] not in tpus:
        raise ConfigError(
            f"target={target!r} is not possible: write 'cpu', or CHIP:LAYOUT, e.g. 'v5e:2x4', of {', '.join(tpus)}."
        )
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=target, wrap=_wrap(target)).devices)
    except Exception as error:  # of many types: no library, no such layout
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"The TPU compiler does not know target={target!r} ({reason}): if it is missing, install it with "
            'pip install "loong_jax[tpu]".'
        ) from error


def _wrap(target: str) -> tuple[bool, bool, bool]:
    """Along which sides the ends of a slice are joined to rings, which gathers need: of v4 and v5p all or none, where
    each side is a multiple of 4; of v5e and v6e those of 16 chips (cloud.google.com/tpu/docs, a page for each version).
    """
    chip, _, layout = target.partition(":")
    sides = [int(side) for side in re.findall(r"\d+", layout)]
    if chip in ("v4", "v5p"):
        return (len(sides) == 3 and all(side % 4 == 0 for side in sides),) * 3
    first, second, *_ = [side == 16 for side in sides] + [False, False]
    return (first, second, False)
