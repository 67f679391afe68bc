"""The routes: the page, and the HTTP API below /api."""

import asyncio
import dataclasses
from collections.abc import AsyncIterable
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

from loong_jax.config import ServeJob
from loong_jax.pipeline import Pipeline
from loong_jax.serving.messages import ModelFacts, Problem, Progress, VideoRequest
from loong_jax.serving.reading import RequestReader
from loong_jax.serving.served_video import ServedVideo
from loong_jax.serving.worker import Busy, Worker

_PAGE = Path(__file__).parent / "page"
_PAGE_TYPES = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
_ERRORS = {
    401: {"model": Problem, "description": "The token is missing or wrong."},
    404: {"model": Problem, "description": "There is no such video, or none any longer."},
    413: {"model": Problem, "description": "The request is too large."},
    422: {"model": Problem, "description": "Something in the request is not possible."},
    503: {"model": Problem, "description": "Too many videos wait; Retry-After says for how many seconds."},
}
# What a request may say, and the page shows the server's own value of.
_SHOWN_DEFAULTS = ("seconds", "temperature", "top_k", "guidance_scale", "negative_prompt", "text_change")
_SHOWN_LIMITS = ("max_seconds", "max_prompt_length", "max_segments", "max_body_mib")


def make_app(pipe: Pipeline, worker: Worker, job: ServeJob) -> FastAPI:
    """The application, without its ``Guard``."""
    app = FastAPI(
        title="loong_jax",
        description="Videos from text. Where the server asks for a token, send Authorization: Bearer TOKEN.",
        docs_url=None,  # these load scripts from elsewhere
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    app.include_router(_page_routes(), include_in_schema=False)
    app.include_router(_api_routes(pipe, worker, job))
    app.add_exception_handler(RequestValidationError, _say_what_is_invalid)
    app.add_exception_handler(StarletteHTTPException, _say_what_is_wrong)
    app.add_exception_handler(Exception, _say_that_it_failed)
    return app


def _page_routes() -> APIRouter:
    router = APIRouter()

    def add(path: str, name: str) -> None:
        content = (_PAGE / name).read_bytes()
        router.add_api_route(path, lambda: Response(content, media_type=_PAGE_TYPES[name]))

    add("/", "index.html")
    add("/page.css", "page.css")
    add("/page.js", "page.js")
    return router


def _api_routes(pipe: Pipeline, worker: Worker, job: ServeJob) -> APIRouter:
    router = APIRouter(prefix="/api", responses={401: _ERRORS[401]})
    defaults = job.sampling.over(pipe.sampling)
    read, reads = RequestReader(pipe, job), asyncio.Semaphore(1)  # others wait without holding a thread

    def find(video_id: str) -> ServedVideo:
        video = worker.find(video_id)
        if video is None:
            raise HTTPException(404, "There is no such video, or none any longer.")
        return video

    Found = Annotated[ServedVideo, Depends(find)]

    @router.get("/model")
    async def model() -> ModelFacts:
        """What the model makes, what a request leaves out, and what the server allows."""
        return ModelFacts(
            name=Path(job.model_path).name,
            fps=pipe.fps,
            frame_size=pipe.frame_size,
            max_text_ids=pipe.generator.max_text_ids,
            defaults={name: getattr(defaults, name) for name in _SHOWN_DEFAULTS},
            limits={name: value for name, value in dataclasses.asdict(job.limits).items() if name in _SHOWN_LIMITS},
        )

    @router.post("/videos", status_code=202, responses={code: _ERRORS[code] for code in (413, 422, 503)})
    async def create(asked: VideoRequest) -> Progress:
        """Ask for a video; follow its events, or ask for it now and then, or it is given up."""
        try:
            worker.require_room()  # before anything of it is read
            async with reads:
                request = await run_in_threadpool(read, asked)
            return worker.submit(request).progress
        except Busy as busy:
            raise HTTPException(503, str(busy), {"Retry-After": str(busy.retry_after)}) from None
        except ValueError as error:
            raise HTTPException(422, str(error)) from None

    @router.get("/videos/{video_id}", responses={404: _ERRORS[404]})
    async def status(video: Found) -> Progress:
        """How far a video is."""
        return video.progress

    @router.delete("/videos/{video_id}", responses={404: _ERRORS[404]})
    async def stop(video: Found) -> Progress:
        """End a video after the latent frame that it is at; what there is of it stays."""
        worker.stop(video, "Stopped as asked.")
        return video.progress

    @router.get("/videos/{video_id}/events", response_class=EventSourceResponse, responses={404: _ERRORS[404]})
    async def events(video: Found, last_event_id: Annotated[int, Header(ge=0)] = 0) -> AsyncIterable[ServerSentEvent]:
        """Server-sent events, the data of each a Progress; the last one has state done, stopped or failed."""
        async for number, progress in _follow(video, last_event_id):
            yield ServerSentEvent(data=progress, id=str(number))

    @router.get("/videos/{video_id}/video.mp4", response_class=FileResponse, responses={404: _ERRORS[404]})
    async def file(video: Found) -> FileResponse:
        """The mp4 (H.264) of a video that has ended."""
        if video.progress.video is None:
            raise HTTPException(404, "There is nothing of this video yet: wait until it has ended.")
        return FileResponse(video.path, media_type="video/mp4", filename="loong.mp4")

    return router


async def _follow(video: ServedVideo, seen: int) -> AsyncIterable[tuple[int, Progress]]:
    """Events and their numbers, from 1 on, after the first ``seen``, as they come."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    with video.followed(lambda: loop.call_soon_threadsafe(changed.set)) as known:
        place = min(seen, len(known) - video.is_over)  # how it ended is said in any case
        while True:
            changed.clear()
            is_over = video.is_over
            while place < len(known):
                place += 1
                yield place, known[place - 1]
            if is_over:
                return
            await changed.wait()


async def _say_what_is_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "path", "query", "header"))
    sentence = (
        "The request is no JSON object" if first["type"] == "json_invalid" else f"{where or 'request'}: {first['msg']}"
    )
    return _problem(422, f"{sentence[:300]}.")


async def _say_what_is_wrong(request: Request, error: StarletteHTTPException) -> JSONResponse:
    return _problem(error.status_code, str(error.detail), error.headers)


async def _say_that_it_failed(request: Request, error: Exception) -> JSONResponse:
    return _problem(500, "The server failed at this; its log says why.")


def _problem(status: int, sentence: str, headers: Any = None) -> JSONResponse:
    plain = sentence.encode("utf-8", "replace").decode()
    return JSONResponse({"error": plain}, status, headers)
