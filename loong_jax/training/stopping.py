"""Stopping a training from outside: SIGTERM (preemption) and SIGINT (Ctrl-C) let it finish its step and save."""

import os
import signal
import socket
import threading

import jax
from jax.experimental import multihost_utils

from loong_jax.endings import end_at_once


class StopRequest:
    """While entered, the first SIGTERM or SIGINT asks the training to stop; a second ends the process at once.

    At once means also inside a step or a compilation, in which Python's own handlers would wait: a thread reads the
    signals. Of several processes, JAX listens to SIGTERM and brings all of them to stop after the same step; it leaves
    a second SIGTERM to the system, which ends that process.
    """

    def __init__(self):
        self._is_shared = jax.process_count() > 1
        self._is_asked = False
        self._listens = threading.current_thread() is threading.main_thread()  # others get no signals

    def __enter__(self) -> "StopRequest":
        if self._listens:
            self._received, self._sent = socket.socketpair()
            self._sent.setblocking(False)
            self._wakeup_before = signal.set_wakeup_fd(self._sent.fileno(), warn_on_full_buffer=False)
            heard = (signal.SIGINT,) if self._is_shared else (signal.SIGINT, signal.SIGTERM)
            self._before = {number: signal.signal(number, lambda *_: None) for number in heard}
            threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        if self._listens:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._wakeup_before)
            self._sent.close()  # which ends the thread

    def is_due(self, step: int) -> bool:
        """Whether to save and stop after ``step``; all processes ask after every step, and hear the same."""
        if self._is_shared:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._is_asked

    @property
    def is_asked(self) -> bool:
        """Whether this process was asked, where it is the only one; several hear it by ``is_due`` alone."""
        return self._is_asked and not self._is_shared

    def _listen(self) -> None:
        with self._received:
            while received := self._received.recv(1):
                number = received[0]
                if number not in self._before:
                    continue
                if self._is_asked:
                    end_at_once(128 + number)
                self._is_asked = True
                name = signal.Signals(number).name
                print(f"{name}: saving after this step, then stopping; a second one ends at once", flush=True)
                if self._is_shared:
                    os.kill(os.getpid(), signal.SIGTERM)
