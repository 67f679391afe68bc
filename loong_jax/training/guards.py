"""Guards of a training: a step that is not finite changes nothing, many in a row take it back, and spikes are said."""

import collections
import dataclasses
import statistics
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from loong_jax.training.state import Skips, TrainState

_REMEMBERED = 100  # logged losses that a spike is measured against
_ENOUGH = 20  # of them, before one can be called a spike


class NotFinite(Exception):
    """Too many steps in a row were skipped; ``step`` is the last of them, ``metrics`` are its."""

    def __init__(self, step: int, metrics: dict):
        super().__init__(f"step {step} and those before it were not finite")
        self.step, self.metrics = step, metrics


def guarded(before: TrainState, after: TrainState, is_finite: Bool[Array, ""]) -> tuple[TrainState, dict]:
    """Inside a jitted step: ``after`` where the step was finite, else ``before``; in both cases the step is counted.

    Returns:
        The state, and the metrics ``skipped`` (0 or 1), ``skipped_steps`` (so far) and ``skipped_in_a_row``.
    """
    skipped = 1 - is_finite.astype(jnp.int32)
    skips = Skips(before.skips.total + skipped, (before.skips.in_a_row + 1) * skipped)
    after = dataclasses.replace(after, step=before.step, skips=before.skips)
    kept = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), after, before)
    counts = {"skipped": skipped, "skipped_steps": skips.total, "skipped_in_a_row": skips.in_a_row}
    return dataclasses.replace(kept, step=before.step + 1, skips=skips), counts


def is_sound(state: TrainState, most_skips: int) -> bool:
    """Whether to come back to ``state``: it is finite, and fewer than ``most_skips`` steps before it were skipped.

    It is looked at in full only where the last step was skipped: what a step made is finite.
    """
    skipped = int(jax.device_get(state.skips.in_a_row)) if jax.tree.leaves(state.skips) else 0
    return skipped == 0 or (skipped < most_skips and bool(jax.device_get(_all_finite(state))))


@jax.jit
def _all_finite(state: TrainState) -> Bool[Array, ""]:
    numbers = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in numbers]))


class Watch:
    """What the host makes of logged metrics: warnings, and ``NotFinite`` when it is enough."""

    def __init__(self, most_skips: int, records: Iterable[dict] = ()):
        """Go on from the training's ``records`` so far.

        Args:
            most_skips: steps in a row that may be skipped, less one.
            records: of metrics.jsonl.
        """
        train = [record for record in records if record["split"] == "train"]
        self._most_skips = most_skips
        losses = (record["loss"] for record in train if not record.get("skipped"))
        self._losses = collections.deque(losses, maxlen=_REMEMBERED)
        self._skipped = train[-1].get("skipped_steps", 0) if train else 0

    def look(self, step: int, metrics: dict) -> list[str]:
        """Warnings about the fetched metrics of ``step``.

        Raises:
            NotFinite: too many steps in a row were skipped.
        """
        warnings, loss, skipped = [], float(metrics["loss"]), int(metrics.get("skipped_steps", 0))
        if skipped > self._skipped:
            warnings.append(
                f"{skipped - self._skipped} steps whose loss or gradients were not finite changed nothing: lower the "
                "learning rate if that recurs."
            )
        self._skipped = skipped
        if int(metrics.get("skipped_in_a_row", 0)) >= self._most_skips:
            raise NotFinite(step, metrics)
        if not metrics.get("skipped", 0):
            usual, spread = self._usual()
            if loss > usual + spread:
                warnings.append(f"the loss {loss:.4g} is a spike: it was {usual:.4g} in the steps logged before.")
            self._losses.append(loss)
        return warnings

    def _usual(self) -> tuple[float, float]:
        """Median of the losses, and how much above it is a spike: six robust standard deviations, and a tenth."""
        if len(self._losses) < _ENOUGH:
            return float("inf"), 0.0
        median = statistics.median(self._losses)
        deviation = 1.4826 * statistics.median(abs(loss - median) for loss in self._losses)
        return median, max(6 * deviation, 0.1 * abs(median))
