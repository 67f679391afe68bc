"""One video that was asked for: how far it is, and who follows it."""

import base64
import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from loong_jax.sampling.long_video import Request
from loong_jax.serving.messages import Progress
from loong_jax.video import Video, encode_png


class ServedVideo:
    """A video from when it is asked for until it is forgotten; safe to use from any thread.

    Everything that happens to it is an event, a ``Progress``. The frames in them are kept only while the video is
    sampled or somebody still reads them.
    """

    def __init__(self, request: Request, folder: Path):
        self.id = secrets.token_urlsafe(16)  # nobody guesses another's
        self.request = request
        self.path = folder / f"{self.id}.mp4"
        self.stop_reason = ""  # once it shall stop
        self._events = [Progress(id=self.id, num_frames=request.num_frames)]
        self._listeners: set[Callable[[], None]] = set()
        self._lock = threading.RLock()  # a signal's handler may come while it is held
        self._begin: tuple[float, int] | None = None  # time and number of the first frames, compilation behind them
        self._seen = time.monotonic()
        self.ended = 0.0  # time of the last event

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return self._events[-1].model_copy(update={"strip": None})

    @property
    def is_over(self) -> bool:
        """Whether it is done, stopped or failed."""
        return self._events[-1].state in ("done", "stopped", "failed")

    def is_abandoned(self, timeout: float) -> bool:
        """Whether nobody follows it, and nobody has asked for it for so many seconds."""
        return not self._listeners and time.monotonic() - self._seen > timeout

    def see(self) -> None:
        """Note that somebody asked for it."""
        self._seen = time.monotonic()

    @contextlib.contextmanager
    def followed(self, wake: Callable[[], None]) -> Iterator[list[Progress]]:
        """Its events, a list that grows; ``wake`` is called, from any thread, when it has."""
        with self._lock:
            self._listeners.add(wake)
        try:
            yield self._events
        finally:
            with self._lock:
                self._listeners.discard(wake)
                self._drop_frames()
            self.see()

    def tell(self, **news: Any) -> None:
        """Add an event in which ``news``, fields of ``Progress``, have changed."""
        with self._lock:
            self.ended = time.monotonic()  # before it is over, for others read both without the lock
            self._events.append(self.progress.model_copy(update=news))
            self._drop_frames()
            for wake in self._listeners:
                wake()

    def show(self, frames: Video) -> None:
        """Add an event with new frames, uint8 [frames, height, width, 3]."""
        now, done = time.monotonic(), self._events[-1].frames + len(frames)
        left = None
        if self._begin is None:
            self._begin = now, done
        elif now > self._begin[0]:
            begin, before = self._begin
            left = max(0, self.request.num_frames - done) * (now - begin) / (done - before)
        strip = base64.b64encode(encode_png(frames.reshape(-1, *frames.shape[2:]))).decode()
        self.tell(frames=done, seconds_left=left, strip=strip)

    def _drop_frames(self) -> None:
        if self.is_over and not self._listeners:
            self._events = self._events[-1:]
