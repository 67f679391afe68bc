"""The loop that both trainings share: steps, metrics a step late, evaluation, checkpoints, resume, stopping,
and going back to a checkpoint where steps are not finite.
"""

import collections
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from loong_jax import sharding
from loong_jax.checkpoint import Checkpointer
from loong_jax.config import TrainConfig
from loong_jax.endings import GaveUp, Stopped
from loong_jax.training.guards import NotFinite, Watch, is_sound
from loong_jax.training.metrics import MetricsWriter, ProgressReport, dispensable, read_metrics, say, summarize
from loong_jax.training.profiler import ProfilerWindow
from loong_jax.training.provenance import changed_settings, check_finished, check_same_model
from loong_jax.training.state import TrainState
from loong_jax.training.stopping import StopRequest
from loong_jax.training.throughput import Throughput, Work
from loong_jax.video import Image


@dataclasses.dataclass(frozen=True)
class Training:
    """One training, ready to run.

    ``batches(step)`` iterates over host batches from that step on; ``step`` and ``evaluate`` are the jitted step and
    ``state -> metrics``; ``work`` says what is counted in batches; ``shown`` names the metrics on the progress line;
    ``meta`` (of ``provenance``) is stored in every checkpoint; ``alarm`` makes a warning of a step's metrics, or "";
    ``draw`` makes named pictures of all records so far.
    """

    title: str
    workdir: Path
    config: TrainConfig
    mesh: Mesh
    state: TrainState
    step: Callable[[TrainState, dict], tuple[TrainState, dict]]
    batches: Callable[[int], Iterator[dict]]
    evaluate: Callable[[TrainState], dict]
    work: Work
    shown: tuple[str, ...]
    meta: dict
    alarm: Callable[[dict], str] = lambda metrics: ""
    draw: Callable[[list[dict]], dict[str, Image]] = lambda records: {}


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a training is: the steps done, and the batches read, which are more where some were left out."""

    step: int = 0
    batch: int = 0

    def after(self, step: int) -> "_Place":
        return _Place(step, self.batch + step - self.step)


def run(training: Training) -> TrainState:
    """Train to ``config.num_steps``, from the newest checkpoint in the workdir if there is one.

    Raises:
        Stopped: a signal asked for it, and the training is saved.
        GaveUp: steps are not finite, again and again.
        OSError: the last checkpoint could not be written.
        ValueError: the checkpoints in the workdir are of something else, or none is whole.
    """
    config, state = training.config, training.state
    mesh = " x ".join(f"{size} {name}" for name, size in training.mesh.shape.items())
    say(f"{training.title}: {optax.tree.size(state.params):,} parameters on a mesh of {mesh}")
    checkpointer = Checkpointer(training.workdir, config.keep_checkpoints, config.keep_every)
    with checkpointer as checkpoints, jax.set_mesh(training.mesh):
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        place, state = _resume(training, checkpoints, abstract)
        if jax.process_index() == 0 and place.step < config.num_steps:
            path = training.workdir / "config.json"
            with dispensable(path):
                path.write_text(json.dumps(training.meta["config"], indent=2) + "\n")
        returns = collections.Counter()
        while place.step < config.num_steps:
            try:
                state = _train(training, state, place, checkpoints)
                place = place.after(config.num_steps)
            except NotFinite as error:
                failure = error.with_traceback(None)  # whose frames hold the state
                place, state = _return(training, checkpoints, abstract, place.after(failure.step), failure, returns)
        return state


def _resume(training: Training, checkpoints: Checkpointer, abstract: Any) -> tuple[_Place, TrainState]:
    """The newest checkpoint, or the start."""
    if not checkpoints.is_empty():
        jax.tree.map(lambda x: x.delete(), training.state)  # a device may not have room for two
    found = checkpoints.restore(abstract, lambda stored: check_same_model(stored, training.meta, training.workdir))
    if found is None:
        return _Place(), training.state
    step, state, stored = found
    if step >= training.config.num_steps:
        check_finished(stored, training.meta, training.workdir, step)
    say(f"{training.title}: resuming at step {step}")
    if changes := changed_settings(stored, training.meta):
        say(f"{training.title}: settings have changed: {'; '.join(changes)}")
    return _Place(**stored["place"]), state


def _return(training, checkpoints, abstract, failed: _Place, failure, returns) -> tuple[_Place, TrainState]:
    """The newest checkpoint, before the batches that come after those that failed."""
    found, most = checkpoints.restore(abstract), training.config.max_returns
    values = summarize(failure.metrics, ("loss", "grad_norm", "learning_rate", "skipped_steps"))
    said = (
        f"the {int(failure.metrics['skipped_in_a_row'])} steps up to {failed.step} of {training.title} had no finite "
        f"loss or gradients ({values})"
    )
    advice = "lower --config.optimizer.learning_rate, or look at the data"
    if found is None:
        raise GaveUp(f"Gave up: {said}, and there is no checkpoint yet to go back to: {advice}.")
    step, state, _ = found
    returns[step] += 1
    if returns[step] > most:
        raise GaveUp(f"Gave up: {said}, as after {most} returns to the checkpoint of step {step} before: {advice}.")
    say(f"WARNING: {said}: going back to the checkpoint of step {step}, and on with the data that comes next")
    return _Place(step, failed.batch), state


def _train(training: Training, state: TrainState, place: _Place, checkpoints: Checkpointer) -> TrainState:
    """From ``place`` to the end."""
    config = training.config
    writer = MetricsWriter(training.workdir, place.step)
    progress = ProgressReport(training.title, config.num_steps, place.step)
    say(f"{training.title}: compiling the training step")
    try:
        with ProfilerWindow(training.workdir, config, place.step) as profiler, StopRequest() as stop:
            state, done, is_stopped = _steps(training, state, place, stop, checkpoints, profiler, writer, progress)
            checkpoints.wait()
            # Of one process also where it was asked for while the last step was saved: others may follow this training.
            if is_stopped or stop.is_asked:
                raise Stopped(
                    f"{training.title}: stopped after {done} of {config.num_steps} steps; the same command goes on."
                )
            return state
    finally:
        progress.close()
        writer.close()


def _steps(training, state, place, stop, checkpoints, profiler, writer, progress) -> tuple[TrainState, int, bool]:
    config, throughput = training.config, Throughput(training.work, training.mesh)
    watch = Watch(config.skips_before_return, read_metrics(training.workdir) if jax.process_index() == 0 else ())
    batches = training.batches(place.batch)
    late = None  # (step, metrics, work done) of the step before: fetched when the next one is already under way
    for step in range(place.step + 1, config.num_steps + 1):
        is_last = step == config.num_steps
        if profiler.starts_before(step):
            with throughput.paused(state):
                profiler.start()
        with throughput.waiting_for_data():
            batch = sharding.shard_batch(training.mesh, next(batches))
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            state, metrics = training.step(state, batch)
        throughput.count(batch)
        progress.advance_to(step)
        if late is not None:
            _log(training, *late, throughput, watch, writer, progress)
        late = (step, metrics, throughput.done) if step % config.log_every == 0 or is_last else None
        if profiler.ends_after(step):
            with throughput.paused(state):
                profiler.stop()
        if config.eval_batches and (step % config.eval_every == 0 or is_last):
            with throughput.paused(state):
                evaluation = jax.device_get(training.evaluate(state))
                writer.write(step, "eval", evaluation)
                progress.note(step, "held-out: " + summarize(evaluation, training.shown))
                if not is_last:
                    _draw(training, step, writer)
        is_stopping = stop.is_due(step)
        if step % config.checkpoint_every == 0 or is_last or is_stopping:
            with throughput.paused(state):
                if is_sound(state, config.skips_before_return if is_last or is_stopping else 1):
                    checkpoints.save(step, state, training.meta | {"place": dataclasses.asdict(place.after(step))})
                elif is_last:
                    raise NotFinite(step, jax.device_get(metrics))
                else:
                    progress.note(step, "WARNING: not saved, for this step was not finite")
        if is_stopping:
            break
    if late is not None:
        _log(training, *late, throughput, watch, writer, progress)
    if is_last:
        _draw(training, config.num_steps, writer)
    return state, step, is_stopping


def _log(training, step, metrics, done, throughput, watch, writer, progress) -> None:
    metrics = jax.device_get(metrics)  # waits for the step
    speed = throughput.measure(done)
    writer.write(step, "train", metrics | speed)
    names = (*training.shown, "steps_per_second", f"{training.work.unit}_per_second", "mfu")
    progress.report(step, summarize(metrics | speed, names), speed["steps_per_second"])
    for warning in filter(None, [training.alarm(metrics), *watch.look(step, metrics)]):
        progress.note(step, "WARNING: " + warning)


def _draw(training, step, writer) -> None:
    if jax.process_index() > 0:  # the first process has the records
        return
    for name, picture in training.draw(read_metrics(training.workdir)).items():
        writer.write_picture(step, name, picture)
