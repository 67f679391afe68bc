"""Steps that are not finite change nothing, are counted, and in the end take a training back or stop it."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loong_jax.endings import GaveUp
from loong_jax.training.guards import NotFinite, Watch, guarded, is_sound
from loong_jax.training.metrics import read_metrics
from loong_jax.training.state import Skips, TrainState


def first_state() -> TrainState:
    def zero():
        return jnp.zeros((), jnp.int32)

    return TrainState(zero(), {"sum": jnp.zeros(2)}, {"count": zero()}, skips=Skips(zero(), zero()))


@jax.jit
def step(state, batch):
    """Adds the batch's number to the parameters; not a number makes all that it touches none."""
    params = {"sum": state.params["sum"] + batch["numbers"][:, 0]}
    after = TrainState(state.step, params, {"count": state.opt_state["count"] + 1})
    loss = params["sum"].mean()
    state, counts = guarded(state, after, jnp.isfinite(loss))
    return state, {"loss": loss, "grad_norm": loss, "learning_rate": loss, **counts}


@pytest.fixture
def train_on(train, tmp_path):
    """Batches 1, 2, ... of their numbers, or of NaN where they are ``bad``; also which were read."""

    def call(bad=(), step=step, num_steps=8):
        read = []

        def batches(start):
            for number in itertools.count(start + 1):
                read.append(number)
                yield {"numbers": np.full((2, 4), np.nan if number in bad else number, np.float32)}

        settings = dict(log_every=1, checkpoint_every=2, skips_before_return=2, max_returns=2)
        return train(tmp_path, step, state=first_state(), batches=batches, num_steps=num_steps, **settings), read

    return call


def test_a_step_that_is_not_finite_changes_nothing_but_the_counts():
    state = first_state()
    for number, total, in_a_row in ((1, 0, 0), (np.nan, 1, 1), (np.inf, 2, 2), (2, 2, 0), (np.nan, 3, 1)):
        before = state
        state, metrics = step(state, {"numbers": jnp.full((2, 4), number)})
        is_good = np.isfinite(number)
        assert int(metrics["skipped"]) == (not is_good) and int(state.step) == int(before.step) + 1
        assert (int(state.skips.total), int(state.skips.in_a_row)) == (total, in_a_row)
        assert int(state.opt_state["count"]) == int(before.opt_state["count"]) + is_good
        np.testing.assert_array_equal(state.params["sum"], before.params["sum"] + (number if is_good else 0))
    assert float(state.params["sum"][0]) == 3
    assert is_sound(state, 2) and not is_sound(state, 1)
    broken = dataclasses.replace(state, params={"sum": jnp.full(2, jnp.nan)})
    assert not is_sound(broken, 2)


def test_a_bad_batch_is_left_out(train_on, tmp_path, capsys):
    state, read = train_on(bad={3})
    assert float(state.params["sum"][0]) == sum(range(1, 9)) - 3 and int(state.step) == 8
    assert "3/8 WARNING: 1 steps whose loss or gradients were not finite changed nothing" in capsys.readouterr().out


def test_bad_batches_in_a_row_take_the_training_back_and_on_with_others(train_on, tmp_path, capsys):
    """Batches 5 and 6 are given up at step 6; from step 4 on come 7, which is bad too, and then 8, 9 and 10."""
    state, _ = train_on(bad={5, 6, 7})
    said = capsys.readouterr().out
    assert "the 2 steps up to 6 of test had no finite loss" in said and "going back to the checkpoint of step 4" in said
    assert int(state.step) == 8 and float(state.params["sum"][0]) == 1 + 2 + 3 + 4 + 8 + 9 + 10
    records = read_metrics(tmp_path)
    assert [record["step"] for record in records] == list(range(1, 9))
    assert [record["skipped_in_a_row"] for record in records] == [0, 0, 0, 0, 1, 0, 0, 0]


def test_a_training_that_left_out_batches_is_resumed_after_them(train_on):
    """Stopped at step 6 after it went back: it goes on with batch 9."""
    train_on(bad={5, 6, 7}, num_steps=6)
    state, read = train_on()
    assert read[:2] == [9, 10] and float(state.params["sum"][0]) == 1 + 2 + 3 + 4 + 8 + 9 + 10


def test_what_stays_bad_ends_with_a_report(train_on, tmp_path, capsys):
    with pytest.raises(
        GaveUp,
        match=r"the 2 steps up to 6 of .* \(loss nan.* skipped_steps 2\), as after 2 returns to the "
        r"checkpoint of step 4 before: lower --config.optimizer.learning_rate",
    ):
        train_on(bad=range(5, 100))
    assert capsys.readouterr().out.count("going back to the checkpoint of step 4") == 2


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(train_on):
    with pytest.raises(GaveUp, match="no checkpoint yet"):
        train_on(bad=range(1, 100))


def test_a_weight_that_breaks_is_taken_from_the_checkpoint(train_on):
    """Every step after it is skipped, and none is saved."""
    calls = []

    def breaking(state, batch):
        calls.append(1)
        if len(calls) == 4:
            state = dataclasses.replace(state, params={"sum": jnp.array([1.0, jnp.nan])})
        return step(state, batch)

    state, read = train_on(step=breaking)
    assert int(state.step) == 8 and float(state.params["sum"][0]) == 1 + 2 + sum(range(6, 12))


def test_spikes_are_measured_against_what_was_usual():
    rng = np.random.default_rng(0)
    losses = 3 + 0.1 * rng.standard_normal(60)
    records = [{"split": "train", "loss": loss, "skipped_steps": 0} for loss in losses[:30]]
    watch = Watch(5, [*records, {"split": "eval", "loss": 100.0}])
    for loss in [*losses[30:], 2.0, 3.5]:
        assert watch.look(1, {"loss": loss}) == []
    [warning] = watch.look(2, {"loss": 5.0})
    assert warning.startswith("the loss 5 is a spike: it was 3")
    assert Watch(5).look(1, {"loss": 1e9}) == []  # nothing is usual yet
    with pytest.raises(NotFinite, match="step 9"):
        watch.look(9, {"loss": np.nan, "skipped": 1, "skipped_steps": 5, "skipped_in_a_row": 5})
