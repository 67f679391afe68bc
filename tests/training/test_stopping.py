"""A signal ends a training after its step, saved; a second one ends it at once."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from loong_jax.endings import Stopped
from loong_jax.training import loop
from loong_jax.training.metrics import read_metrics
from loong_jax.training.stopping import StopRequest


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_handlers_are_put_back(number, capfd):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.is_due(1)
        os.kill(os.getpid(), number)
        assert wait_for(lambda: stop.is_due(2))
    assert signal.getsignal(number) == before and signal.set_wakeup_fd(-1) == -1
    assert f"{number.name}: saving after this step, then stopping" in capfd.readouterr().out


def test_a_thread_leaves_signals_alone():
    before, asked = signal.getsignal(signal.SIGTERM), []

    def run():
        with StopRequest() as stop:
            asked.append((stop.is_due(1), signal.getsignal(signal.SIGTERM) == before))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert asked == [(False, True)]


def test_a_second_signal_ends_the_process_even_where_python_waits():
    """For a library's own loop, in which no handler of Python's can run."""
    code = """
import ctypes
from loong_jax.training.stopping import StopRequest
with StopRequest():
    print("ready", flush=True)
    ctypes.CDLL(None).select(0, None, None, None, None)  # returns at a signal
    waiting = ctypes.CDLL(None).pthread_mutex_lock
    mutex = ctypes.create_string_buffer(64)
    waiting(mutex), waiting(mutex)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline().startswith("SIGTERM: saving")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 128 + signal.SIGINT


def test_a_signal_after_the_last_step_is_heard_too(train, tmp_path, monkeypatch):
    """What follows this training, as the demo's next one, would not know of it."""

    def draw(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)

    def step(state, batch):
        return dataclasses.replace(state, step=state.step + 1), {"loss": np.float32(1)}

    monkeypatch.setattr(loop, "_draw", draw)
    with pytest.raises(Stopped, match="stopped after 2 of 2 steps"):
        train(tmp_path, step, num_steps=2)
    assert int(train(tmp_path, step, num_steps=2).step) == 2


def test_a_training_stops_after_its_step_and_goes_on_from_there(train, tmp_path):
    steps = []

    def stopped(signal_at):
        def step(state, batch):
            steps.append(int(batch["numbers"][0, 0]))
            if steps[-1] == signal_at:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.5)
            return dataclasses.replace(state, step=state.step + 1), {"loss": np.float32(steps[-1])}

        return train(tmp_path, step, num_steps=5, log_every=2, checkpoint_every=4)

    for signal_at in (2, 5):
        with pytest.raises(Stopped, match=f"stopped after {signal_at} of 5 steps; the same command goes on"):
            stopped(signal_at)
    assert int(stopped(None).step) == 5
    assert steps == [1, 2, 3, 4, 5]
    assert [record["loss"] for record in read_metrics(tmp_path)] == [2, 4, 5]
