"""What cannot be read is passed over, counted by reason and listed, and stops a run when there is too much of it."""

import collections
import json
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

_MOST_ATTEMPTS = 100  # media that are tried for one example
# Not damage but a choice of clips, which does not count against the bound.
FILTERED = ("too short", "black", "frozen")
_ENOUGH = 100  # examples read, or as many as there are, before the share of bad ones says anything


class BadMedium(ValueError):
    """A medium that cannot serve, or just one clip of it; ``reason`` is one of few, to count by."""

    def __init__(self, reason: str, detail: str = "", *, is_whole: bool = True):
        super().__init__(detail or reason)
        self.reason, self.is_whole = reason, is_whole
        self.key = ""  # of the medium, where it is known

    @property
    def text(self) -> str:
        """Reason and detail."""
        return self.reason if str(self) == self.reason else f"{self.reason}: {self}"


class BadMedia:
    """Counts and lists bad media, and stops the run when there are too many; shared by the threads that read."""

    def __init__(self, name: str, max_share: float, path: Path | None = None):
        """Start with none.

        Args:
            name: what to call the source in messages.
            max_share: damaged ones for each example read so far, once these are enough to say; those that are only
                too short, black or frozen are passed over in any number.
            path: a JSON-lines file that gets one line for each bad medium: key, reason, detail.
        """
        self.name, self._max_share, self._path = name, max_share, path
        self._num_read = self._num_damaged = 0
        self._bad: dict[int, str] = {}  # place -> reason
        self._useless: set[int] = set()
        self._lock = threading.Lock()

    @property
    def counts(self) -> dict[str, int]:
        """How many media were bad, by reason, the most frequent first."""
        return dict(collections.Counter(self._bad.values()).most_common())

    def first_good(
        self, index: int, places: Sequence[int], read: Callable[[int, int], dict], wanted: str = "an example"
    ) -> dict:
        """What ``read(place, attempt)`` gives for example ``index``.

        Example i is at place i modulo their number. In place of a bad one stands another that i alone decides too, so
        that which ones were found bad before changes nothing.

        Raises:
            ValueError: too many in a row, or of all, are bad.
        """
        choice, choices = index % len(places), None
        for attempt in range(_MOST_ATTEMPTS):
            place = places[choice]
            if place not in self._useless:
                try:
                    example = read(place, attempt)
                except BadMedium as error:
                    self._note(place, error)
                else:
                    self._num_read += 1  # for a share, where threads may lose a few
                    self._check_share(len(places))
                    return example
            choices = choices or np.random.default_rng(index)
            choice = int(choices.integers(len(places)))
        wants_caption = "no caption" in self.counts
        raise ValueError(
            f"{self.name}: {_MOST_ATTEMPTS} examples in a row cannot give {wanted} ({self.summary()}): ask for shorter "
            "clips, or repair the data"
            + ("; --config.data.require_caption=False takes media without one." if wants_caption else ".")
        )

    def _note(self, place: int, error: BadMedium) -> None:
        key = error.key or f"entry {place}"
        with self._lock:
            if error.is_whole:
                self._useless.add(place)
            if place in self._bad:
                return
            if not self._bad:
                warnings.warn(
                    f"{self.name}: bad media are passed over, first {key} ({error.text}){self._where()}; "
                    "others stand in their place.",
                    stacklevel=2,
                )
            self._bad[place] = error.reason
            if self._path is not None:
                self._list({"key": key, "reason": error.reason, "detail": str(error)})
            self._num_damaged += error.reason not in FILTERED

    def _list(self, row: dict) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:  # a run does without the list
            warnings.warn(f"{self._path} could not be written ({error.strerror}): no more is listed.", stacklevel=4)
            self._path = None

    def _check_share(self, num_media: int) -> None:
        bad, seen = self._num_damaged, self._num_read + self._num_damaged
        if seen >= min(_ENOUGH, num_media) and bad > self._max_share * seen:
            raise ValueError(
                f"{self.name}: {bad} of the {seen} examples read so far are bad ({self.summary()}), more than "
                f"data.max_bad_share {self._max_share:g} allows{self._where()}."
            )

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict) -> None:
        """Restore in a worker process, which counts for itself."""
        vars(self).update(state, _lock=threading.Lock())

    def summary(self) -> str:
        """The counts in words."""
        return ", ".join(f"{count} {reason}" for reason, count in self.counts.items())

    def _where(self) -> str:
        return f"; they are listed in {self._path}" if self._path is not None else ""
