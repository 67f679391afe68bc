"""A server in a thread of the test, a client of it, and sampling that goes on when a test says so."""

import base64
import contextlib
import dataclasses
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from loong_jax.config import DEBUG_TRANSFORMER, DataConfig, LanguageModelJob, ServeJob, ServingLimits
from loong_jax.pipeline import Pipeline
from loong_jax.sampling.long_video import Piece
from loong_jax.serving import server
from loong_jax.serving.api import make_app
from loong_jax.serving.worker import Worker
from loong_jax.video_file import read_video

JOB = LanguageModelJob(
    model=dataclasses.replace(DEBUG_TRANSFORMER, max_length=128),
    data=DataConfig(frame_size=32, num_frames=17, max_text_ids=8),
)


class Gate:
    """In place of sampling: frames of one gray each, four at a time, each time that ``let`` allows one."""

    def __init__(self):
        self.requests: list[Any] = []
        self._allowed = threading.Semaphore(0)
        self.ended = threading.Event()  # sampling, by itself or because it was left
        self.error: Exception | None = None

    def let(self, pieces: int = 1000) -> None:
        self._allowed.release(pieces)

    def roll_out(self, request: Any, saved: Any = None) -> Iterator[Piece]:
        self.requests.append(request)
        try:
            for first in range(0 if request.start is None else len(request.start[0]), request.num_frames, 4):
                self._allowed.acquire()
                if self.error is not None:
                    raise self.error
                count = min(4, request.num_frames - first)
                yield Piece(np.zeros((1, 4, 4), np.int32), grays(first, count)[None])
        finally:
            self.ended.set()


def grays(first: int, count: int) -> np.ndarray:
    """Frames that say which they are, uint8 [count, 32, 32, 3]."""
    values = (40 + 3 * np.arange(first, first + count)) % 256
    return np.broadcast_to(values.astype(np.uint8)[:, None, None, None], (count, 32, 32, 3))


@contextlib.contextmanager
def running(pipe: Pipeline, folder: Path, token: str = "", **limits: Any) -> Iterator[httpx.Client]:
    """A server of ``pipe``, and a client of it."""
    job = ServeJob(limits=ServingLimits(**limits))
    with contextlib.closing(server._listen("127.0.0.1", 0)) as listener, Worker(pipe, job.limits, folder) as worker:
        app = server.guarded(make_app(pipe, worker, job), job, token)
        serving = server.Server(app, worker, job.limits.max_connections)
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [listener]})
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
                yield client
        finally:
            worker.close()
            serving.should_exit = True
            thread.join()


def events(client: httpx.Client, video: str, seen: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbers and data of a video's events, as they come."""
    with client.stream("GET", f"/api/videos/{video}/events", headers={"Last-Event-ID": str(seen)}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        fields = {}
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            fields[name] = value
            if line == "" and "data" in fields:
                yield int(fields["id"]), json.loads(fields["data"])
                fields = {}


def frames_of(strip: str) -> np.ndarray:
    """The new frames of an event, uint8 [frames, 32, 32, 3]."""
    return read_video(base64.b64decode(strip)).reshape(-1, 32, 32, 3)


def strips(client: httpx.Client, video: str) -> Iterator[np.ndarray]:
    """The frames of a video, as they come."""
    return (frames_of(progress["strip"]) for _, progress in events(client, video) if progress["strip"])
