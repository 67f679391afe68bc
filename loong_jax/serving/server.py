"""Run a ServeJob: load a model, warm it up, and serve it until a signal ends that."""

import contextlib
import ipaddress
import os
import socket
import warnings
from pathlib import Path

import numpy as np

from loong_jax import pipeline
from loong_jax.config import ServeJob, in_all_rounds
from loong_jax.pipeline import Pipeline
from loong_jax.training.metrics import say

try:
    import uvicorn
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.types import ASGIApp

    from loong_jax.serving.api import make_app
    from loong_jax.serving.guard import Guard
    from loong_jax.serving.worker import Worker
except ModuleNotFoundError as missing:
    raise ValueError(f'Serving needs the package {missing.name}: pip install "loong_jax[demo]".') from None

_LAST_ANSWERS = 5  # seconds that connections get to end
_HERE = ["127.0.0.1", "localhost", "[::1]"]


def run_serve(job: ServeJob, workdir: Path) -> None:
    """Serve the model of ``job`` until SIGTERM or Ctrl-C; videos are in ``<workdir>/videos/<port>`` for a while.

    Raises:
        ValueError: there is no model or no token to read, or the address cannot be had.
    """
    token = _read_token(job.token_file)
    with contextlib.closing(_listen(job.host, job.port)) as listener:
        pipe = pipeline.load(pipeline.found(job.model_path, workdir), job.mesh)
        say("compiling the sampler")
        warm_up(pipe, job)
        host, port = listener.getsockname()[:2]
        with Worker(pipe, job.limits, workdir / "videos" / str(port)) as worker:
            server = Server(guarded(make_app(pipe, worker, job), job, token), worker, job.limits.max_connections)
            if not token and not _is_here(host):
                warnings.warn(
                    "anyone who reaches this machine can sample: ask for a token, --config.token_file=FILE",
                    stacklevel=2,
                )
            say(f"open http://{f'[{host}]' if ':' in host else host}:{port}  (Ctrl-C ends it)")
            server.run(sockets=[listener])
        say("ended")


def warm_up(pipe: Pipeline, job: ServeJob) -> None:
    """Compile what requests need: the first clip and the rounds after it, with and without guidance and image."""
    options = vars(job.sampling.over(pipe.sampling))
    is_video = pipe.generator.grid.frames > 1
    seconds = (pipe.generator.tokenizer.config.pixel_frames(pipe.generator.grid.frames) + is_video) / pipe.fps
    starts = [None, np.zeros((pipe.frame_size, pipe.frame_size, 3), np.uint8)][: 1 + is_video]
    for scale, start in [(2.0, None), *((1.0, start) for start in starts)]:
        own = in_all_rounds({"seconds": seconds, "guidance_scale": scale, "negative_prompt": ""})
        for _ in pipe.stream("a video", image=start, **options | own):
            pass


def guarded(app: ASGIApp, job: ServeJob, token: str) -> ASGIApp:
    """The application behind what every request must pass."""
    # Of this machine alone: a foreign page whose name was made to lead here is refused.
    hosts = [*_HERE, job.host] if _is_here(job.host) else ["*"]
    return Guard(TrustedHostMiddleware(app, hosts), token, job.limits.max_body_mib * 2**20)


class Server(uvicorn.Server):
    """Ends all videos at the first signal and itself when they have; at the second it ends at once."""

    def __init__(self, app: ASGIApp, worker: Worker, max_connections: int):
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                log_level="warning",
                access_log=False,
                server_header=False,
                limit_concurrency=max_connections,
                timeout_graceful_shutdown=_LAST_ANSWERS,
            )
        )
        self._worker = worker

    def handle_exit(self, sig: int, frame: object) -> None:
        """Called for SIGINT and SIGTERM."""
        if self.should_exit:
            os._exit(128 + sig)
        self._worker.close()
        self.should_exit = True


def _is_here(host: str) -> bool:
    """Whether only this machine reaches it."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"Port {port} of {host} cannot be had ({reason}): give another, --config.port=0 for any that is free."
        ) from None


def _read_token(path: str) -> str:
    if not path:
        return ""
    token = Path(path).read_text(encoding="utf-8").strip()
    if not token.isascii() or len(token) < 16:
        raise ValueError(f"{path} holds no token: write 16 or more ASCII characters into it.")
    return token
