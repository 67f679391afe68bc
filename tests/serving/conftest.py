"""Servers whose sampling is held by a gate."""

import contextlib
from collections.abc import Callable, Iterator

import httpx
import pytest
from gated import JOB, Gate, running

from loong_jax.config import DEBUG_TOKENIZER
from loong_jax.pipeline import Pipeline
from loong_jax.sampling.long_video import Generator
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer


@pytest.fixture
def gate(monkeypatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(Generator, "roll_out", lambda self, request, saved=None: gate.roll_out(request, saved))
    yield gate
    gate.let()  # so that servers can end


@pytest.fixture
def serve(gate, tmp_path) -> Iterator[Callable[..., httpx.Client]]:
    """Start a server whose sampling ``gate`` holds: ``serve(token="", **limits)`` returns a client of it."""
    pipe = Pipeline(JOB, None, VideoTokenizer(DEBUG_TOKENIZER, {}))
    with contextlib.ExitStack() as stack:
        stack.callback(gate.let)
        yield lambda **settings: stack.enter_context(running(pipe, tmp_path / "videos", **settings))
        gate.let()
