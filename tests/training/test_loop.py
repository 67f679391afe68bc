"""The loop never waits for the step it has just handed out, and leaves metrics, a picture and a profile behind."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loong_jax.config import (
    DEBUG_TOKENIZER,
    DEBUG_TRANSFORMER,
    DataConfig,
    LanguageModelJob,
    OptimizerConfig,
    TrainConfig,
)
from loong_jax.training import loop
from loong_jax.training.lm_job import train_language_model
from loong_jax.training.metrics import read_metrics
from loong_jax.training.optimizer import make_schedule
from loong_jax.training.profiler import ProfilerWindow
from loong_jax.training.throughput import training_flops_per_token
from loong_jax.video_file import read_video

TRAIN = TrainConfig(num_steps=5, batch_size=8, log_every=2, checkpoint_every=4, eval_every=3, eval_batches=2)
JOB = LanguageModelJob(
    model=DEBUG_TRANSFORMER,
    tokenizer=DEBUG_TOKENIZER,
    allow_untrained_tokenizer=True,
    data=DataConfig(frame_size=32, num_frames=5, num_images=16, num_clips=16, max_text_ids=24),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
    train=dataclasses.replace(TRAIN, profile_start=1, profile_steps=2),
)


class OnDevice:
    """A metric that notes when the host fetches it."""

    def __init__(self, step: int, events: list[str]):
        self._step, self._events = step, events

    def __array__(self, *arguments, **options) -> np.ndarray:
        self._events.append(f"fetch {self._step}")
        return np.float32(self._step)


def test_metrics_are_fetched_a_step_late_and_only_where_they_are_logged(train, tmp_path):
    events: list[str] = []

    def step(state, batch):
        number = int(batch["numbers"][0, 0])
        events.append(f"step {number}")
        return dataclasses.replace(state, step=state.step + 1), {"loss": OnDevice(number, events)}

    train(tmp_path, step, num_steps=5, log_every=2, checkpoint_every=4)
    # Step 4 ends in a checkpoint, which waits for its parameters, but not for its metrics.
    assert events == ["step 1", "step 2", "step 3", "fetch 2", "step 4", "step 5", "fetch 4", "fetch 5"]
    assert [record["loss"] for record in read_metrics(tmp_path)] == [2, 4, 5]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training whose loop may move nothing between host and device but what it says it moves, and what it printed."""
    workdir, said, run = tmp_path_factory.mktemp("loop"), [], loop.run

    def guarded(training):
        with jax.transfer_guard("disallow"):
            return run(training)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "run", guarded)
        patch.setattr("loong_jax.training.metrics.CONSOLE.print", lambda text, **_: said.append(text))
        train_language_model(JOB, workdir)
    return workdir, said


def test_the_guard_would_notice():
    """A number or an array that an operation brings along is moved without being asked for."""
    value = jnp.ones(2)
    with jax.transfer_guard("disallow"):
        for mistake in (lambda: value + 1, lambda: jnp.sin(np.ones(2)), lambda: float(value[0])):
            with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
                mistake()
        np.testing.assert_array_equal(jax.device_get(jax.device_put(np.ones(2))), [1, 1])


def test_every_record_is_complete(trained):
    """Steps 2, 4 and the last, each with the learning rate of its step and the speed since the record before."""
    workdir, _ = trained
    records = read_metrics(workdir)
    train = [record for record in records if record["split"] == "train"]
    assert [record["step"] for record in train] == [2, 4, 5]
    assert [record["step"] for record in records if record["split"] == "eval"] == [3, 5]
    schedule, length = make_schedule(JOB.optimizer, 5), 64  # 2 x 16 codes, 24 text ids and 4 markers, to a multiple
    flops = training_flops_per_token(JOB.model, length)
    for record in train:
        assert {"loss", "accuracy", "grad_norm"} < record.keys() and len(record["frame_loss"]) == 2
        assert record["learning_rate"] == pytest.approx(float(schedule(record["step"] - 1)))
        rate = record["steps_per_second"]
        assert record["tokens_per_second"] == pytest.approx(rate * 8 * length)
        assert record["model_flops_per_second"] == pytest.approx(rate * 8 * length * flops)
        assert 0 < record["data_seconds"] <= record["step_seconds"] == pytest.approx(1 / rate)
        assert 0.1 < record["peak_memory_gib"] < 100
        assert "mfu" not in record  # of a CPU


def test_the_mean_of_evaluations_is_that_of_their_batches(trained):
    """And lies near the training's: both start from log(74) = 4.3 nats per id."""
    workdir, _ = trained
    first = next(record for record in read_metrics(workdir) if record["split"] == "eval")
    assert np.allclose([first["loss"], *first["frame_loss"]], np.log(74), atol=0.3)


def test_the_log_says_how_fast_it_goes(trained):
    _, said = trained
    lines = [line for line in said if re.search(r" [245]/5 loss", line)]
    assert len(lines) == 3
    speed, left = r"steps_per_second [\d.]+  tokens_per_second [\d,.]+", r"  \d:\d\d:\d\d left"
    assert all(re.search(f"{speed}{left}$", line) for line in lines[:2])
    assert re.search(f"{speed}$", lines[2])  # at the end nothing is left


def test_the_profiler_records_its_window(trained):
    workdir, said = trained
    assert "profiling steps 2 to 3" in said and f"the profile is in {workdir}/profile" in "".join(said)
    assert [file.stat().st_size > 1000 for file in (workdir / "profile").rglob("*.xplane.pb")] == [True]


def test_the_picture_of_losses_is_there(trained):
    workdir, _ = trained
    picture = read_video(workdir / "samples" / "loss_by_frame.png")
    assert picture.shape == (1, 540, 960, 3) and picture.std() > 5
    shown = b"".join(file.read_bytes() for file in (workdir / "tensorboard").iterdir())
    assert b"loss_by_frame" in shown and b"train/learning_rate" in shown


@pytest.mark.parametrize(
    ("start", "count", "resumed_after", "steps"),
    [(0, 0, 0, []), (3, 2, 0, [4, 5]), (0, 2, 0, [1, 2]), (3, 3, 4, [5, 6]), (3, 2, 5, []), (8, 9, 0, [9, 10])],
)
def test_the_window_has_the_steps_that_were_asked_for(start, count, resumed_after, steps, tmp_path, monkeypatch):
    """Steps before a resumed training's first, and after the last, are left out."""
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(folder))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    config, recorded = TrainConfig(num_steps=10, profile_start=start, profile_steps=count), []
    window = ProfilerWindow(tmp_path, config, resumed_after)
    for step in range(resumed_after + 1, 11):
        if window.starts_before(step):
            window.start()
        recorded += [step] if calls and calls[-1] != "stop" else []
        if window.ends_after(step):
            window.stop()
    assert recorded == steps and calls == ([str(tmp_path / "profile"), "stop"] if steps else [])


def test_a_training_that_fails_inside_the_window_leaves_no_profiler_running(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    with pytest.raises(ZeroDivisionError), ProfilerWindow(tmp_path, TrainConfig(profile_steps=5), 0) as window:
        window.start()
        raise ZeroDivisionError
    assert calls == ["stop"]


def test_a_profile_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    def stop_trace():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: /w/vm.xplane.pb; No space left on device")

    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", stop_trace)
    window = ProfilerWindow(tmp_path, TrainConfig(profile_steps=5), 0)
    window.start()
    with pytest.warns(UserWarning, match="profile could not be written .*No space left on device.: the training goes"):
        window.stop()
    assert not window.ends_after(5)
