"""The loop that both trainings share: steps, metrics a step late, evaluation, checkpoints, resume."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from loong_jax import sharding
from loong_jax.checkpoint import Checkpointer
from loong_jax.config import TrainConfig
from loong_jax.training.metrics import MetricsWriter, ProgressReport, say, summarize
from loong_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Training:
    """One training, ready to run.

    ``batches(step)`` iterates over host batches from that step on; ``step`` and ``evaluate`` are the jitted step and
    ``state -> metrics``; ``shown`` names the metrics on the progress line; ``meta`` is stored in every checkpoint;
    ``alarm`` makes a warning of a step's metrics, or "".
    """

    title: str
    workdir: Path
    config: TrainConfig
    mesh: Mesh
    state: TrainState
    step: Callable[[TrainState, dict], tuple[TrainState, dict]]
    batches: Callable[[int], Iterator[dict]]
    evaluate: Callable[[TrainState], dict]
    shown: tuple[str, ...]
    meta: dict
    alarm: Callable[[dict], str] = lambda metrics: ""


def run(training: Training) -> TrainState:
    """Train to ``config.num_steps``, from the newest checkpoint in the workdir if there is one."""
    config, state = training.config, training.state
    mesh = " x ".join(f"{size} {name}" for name, size in training.mesh.shape.items())
    say(f"{training.title}: {optax.tree.size(state.params):,} parameters on a mesh of {mesh}")
    with Checkpointer(training.workdir, config.keep_checkpoints) as checkpoints, jax.set_mesh(training.mesh):
        start = checkpoints.latest_step() or 0
        if start:
            say(f"{training.title}: resuming at step {start}")
            state = checkpoints.restore(start, _abstract(state))
        if start >= config.num_steps:
            return state
        writer = MetricsWriter(training.workdir, start)
        progress = ProgressReport(training.title, config.num_steps, start)
        say(f"{training.title}: compiling the training step")
        try:
            return _steps(training, state, start, checkpoints, writer, progress)
        finally:
            progress.close()
            writer.close()


def _steps(training, state, start, checkpoints, writer, progress) -> TrainState:
    config = training.config
    batches = training.batches(start)
    late = None  # (step, metrics) of the step before: fetched when the next one is already under way
    clock, clock_step = time.perf_counter(), start
    for step in range(start + 1, config.num_steps + 1):
        batch = sharding.shard_batch(training.mesh, next(batches))
        state, metrics = training.step(state, batch)
        progress.advance_to(step)
        if late is not None:
            _log(training, *late, writer, progress)
            late = None
        if step % config.log_every == 0 or step == config.num_steps:
            now = time.perf_counter()
            metrics["steps_per_second"] = (step - clock_step) / (now - clock)
            clock, clock_step = now, step
            late = step, metrics
        if config.eval_batches and (step % config.eval_every == 0 or step == config.num_steps):
            evaluation = jax.device_get(training.evaluate(state))
            writer.write(step, "eval", evaluation)
            progress.report(step, "held-out: " + summarize(evaluation, training.shown))
        if step % config.checkpoint_every == 0 or step == config.num_steps:
            checkpoints.save(step, state, training.meta)
    if late is not None:
        _log(training, *late, writer, progress)
    return state


def _log(training, step, metrics, writer, progress) -> None:
    metrics = jax.device_get(metrics)
    writer.write(step, "train", metrics)
    progress.report(step, summarize(metrics, (*training.shown, "steps_per_second")))
    if warning := training.alarm(metrics):
        progress.report(step, "WARNING: " + warning)


def _abstract(state: TrainState) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
