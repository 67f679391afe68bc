"""A window of steps that JAX's profiler records."""

import warnings
from pathlib import Path

import jax

from loong_jax.config import TrainConfig
from loong_jax.training.metrics import say


class ProfilerWindow:
    """The steps after ``profile_start``, ``profile_steps`` of them, recorded into ``<workdir>/profile``."""

    def __init__(self, workdir: Path, config: TrainConfig, start_step: int):
        """Describe the window of a training whose next step is ``start_step`` + 1; earlier ones are not recorded."""
        self._folder = workdir / "profile"
        self._first = max(config.profile_start, start_step) + 1
        self._last = min(config.profile_start + config.profile_steps, config.num_steps)
        self._is_running = False

    def __enter__(self) -> "ProfilerWindow":
        return self

    def __exit__(self, *error) -> None:
        if self._is_running:  # the training failed inside the window
            self.stop()

    def starts_before(self, step: int) -> bool:
        """Whether ``step`` is the first of the window."""
        return step == self._first <= self._last

    def ends_after(self, step: int) -> bool:
        """Whether ``step`` is the last of the window."""
        return self._is_running and step == self._last

    def start(self) -> None:
        """Record from here on."""
        say(f"profiling steps {self._first} to {self._last}")
        jax.profiler.start_trace(str(self._folder))
        self._is_running = True

    def stop(self) -> None:
        """Write what was recorded; where that cannot be written, a warning says so."""
        self._is_running = False
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError) as error:  # of JAX: a full disk, which it calls RESOURCE_EXHAUSTED
            reason = str(error).splitlines()[0][:200]
            warnings.warn(f"the profile could not be written ({reason}): the training goes on.", stacklevel=2)
            return
        say(f"the profile is in {self._folder}: pip install xprof, then xprof --logdir={self._folder}")
