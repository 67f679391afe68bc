"""Run a SampleJob: prompts to video files, a batch of prompts at a time; or saved ids to video files."""

import collections
import contextlib
import dataclasses
import itertools
import re
import time
import warnings
from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np

from loong_jax import pipeline
from loong_jax.config import SampleJob, SamplingConfig
from loong_jax.data.prompts import parse_prompt, read_prompts
from loong_jax.sample_files import SampleFiles
from loong_jax.sampling.long_video import Request
from loong_jax.sampling.saved_ids import SavedIds
from loong_jax.training.metrics import ProgressReport, say
from loong_jax.video_file import VideoFile

_REPORT_EVERY = 5.0  # seconds
_COMPILING = 2  # parts that are mostly compilation: a first latent frame's pixels are decoded otherwise than the next
_LONGEST_NAME = 60


def run_sample(job: SampleJob, workdir: Path) -> list[Path]:
    """Sample a video for every prompt of ``job`` into ``<workdir>/samples``; returns the files.

    Files are written as frames come, and the ids of each video beside them: where a run was stopped, at any time, the
    same job goes on to the same videos, and what is whole is not done again. With ``job.decode`` videos are made from
    such ids alone.

    Raises:
        ValueError: prompts, the model, or what to start from cannot be read.
    """
    model_path = pipeline.found(job.model_path, workdir)
    if job.decode:
        return _decode(job, model_path, workdir)
    lines = read_prompts(job.prompt, job.prompts_file)
    pipe = pipeline.load(model_path, job.mesh)
    start, options = _read_start(job, pipe), vars(job.sampling.over(pipe.sampling))
    videos = [
        _Video(parse_prompt(line), job.seed + index, _stem(workdir, index, line, job.seed))
        for index, line in enumerate(lines)
    ]

    def request(batch: list[_Video]) -> Request:
        return pipe.request([video.prompt for video in batch], [video.seed for video in batch], **start, **options)

    # An impossible prompt is said before hours go into the others.
    checked = [(batch, request(batch)) for batch in _batches(videos, job.batch_size, lambda video: video.seconds)]
    for batch, asked in checked:
        for video in batch:
            _open(video, pipe, asked, options, _outputs(job))
    missing = [video for video in videos if not video.is_made]
    for batch in _batches(missing, job.batch_size, lambda video: (video.seconds, video.num_whole)):
        _sample_batch(pipe, batch, request(batch))
    return [path for video in videos for path in video.files.paths]


def sample_videos(
    pipe: pipeline.Pipeline, prompts: list[str], seed: int, sampling: SamplingConfig, batch_size: int
) -> np.ndarray:
    """One video per prompt, uint8 [prompts, frames, height, width, 3], with progress on the screen.

    ``batch_size`` at once; the prompt at place i has the seed ``seed`` + i.
    """
    videos = []
    for first in range(0, len(prompts), batch_size):
        batch = prompts[first : first + batch_size]
        parts = []
        with contextlib.closing(_Progress(pipe, len(batch), sampling)) as progress:
            for frames in pipe.stream(batch, seed + first, **vars(sampling)):
                parts.append(frames)
                progress.add(frames.shape[1])
        videos.append(np.concatenate(parts, axis=1))
    return np.concatenate(videos)


def write_sample(stem: Path, video: np.ndarray, fps: float) -> list[Path]:
    """Write ``stem``.mp4, .gif and a contact sheet .png of one video."""
    with SampleFiles(stem, len(video), fps, ("mp4", "gif", "sheet")) as files:
        files.write(video)
    return files.paths


@dataclasses.dataclass
class _Video:
    """A video to sample, and where it is kept."""

    prompt: pipeline.Prompt
    seed: int
    stem: Path  # of its files
    saved: SavedIds | None = None
    files: SampleFiles | None = None
    num_whole: int = 0  # saved latent frames, of whole rounds
    is_made: bool = False  # nothing is left to do

    @property
    def seconds(self) -> tuple[float, ...]:
        """When its text changes."""
        return () if isinstance(self.prompt, str) else tuple(second for second, _ in self.prompt)


def _batches(videos: list[_Video], size: int, alike: Callable[[_Video], Hashable]) -> list[list[_Video]]:
    """Videos for which ``alike`` gives the same, ``size`` at a time."""
    groups = collections.defaultdict(list)
    for video in videos:
        groups[alike(video)].append(video)
    return [group[first : first + size] for group in groups.values() for first in range(0, len(group), size)]


def _open(video: _Video, pipe: pipeline.Pipeline, request: Request, options: dict, outputs: tuple[str, ...]) -> None:
    """Find what there is of a video, for which ``request`` asks."""
    [origin] = pipe.origins([video.prompt], video.seed, **options)
    begun = None if request.start is None else request.start[0]
    video.saved = SavedIds.create(video.stem.with_name(f"{video.stem.name}.ids"), origin, begun)
    video.files = SampleFiles(video.stem, request.num_frames, pipe.fps, outputs)
    video.num_whole = pipe.generator.num_whole(request, len(video.saved))
    is_whole = video.num_whole == pipe.generator.num_latents(request)
    video.is_made = is_whole and _is_made_of(video.files.paths, video.saved)
    if video.is_made:
        say(f"{video.stem.name}: there already")


def _sample_batch(pipe: pipeline.Pipeline, videos: list[_Video], request: Request) -> None:
    """Go on with videos that are equally far, and write their files."""
    num_saved = videos[0].num_whole
    for video in videos:
        video.saved.keep(num_saved)
    if num_saved:
        say(f"going on after {num_saved} latent frames that were saved")
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(contextlib.closing(_Progress(pipe, len(videos), request.sampling)))
        for index, video in enumerate(videos):
            stack.enter_context(video.files)
            if request.start is not None:
                video.files.write(request.start[index, : request.num_frames])
        if request.start is not None:
            progress.add(request.start.shape[1], is_new=False)
        pieces = pipe.generator.roll_out(request, np.stack([video.saved.read() for video in videos]))
        for count, piece in enumerate(pieces):
            for index, video in enumerate(videos):
                if count >= num_saved:
                    video.saved.append(piece.ids[index])
                video.files.write(piece.frames[index])
            progress.add(piece.frames.shape[1], is_new=count >= num_saved)
    for path in (path for video in videos for path in video.files.paths):
        say(f"wrote {path}")


def _is_made_of(paths: list[Path], saved: SavedIds) -> bool:
    """Whether all files are there, and none is of ids that were there before."""
    made = saved.path.stat().st_mtime
    return all(path.exists() and path.stat().st_mtime >= made for path in paths)


def _decode(job: SampleJob, model_path: Path, workdir: Path) -> list[Path]:
    """Make the videos of saved ids, a file or all of a folder's."""
    path = Path(job.decode)
    found = sorted(path.glob("*.ids")) if path.is_dir() else [path]
    if not found:
        raise ValueError(f"There is no file of ids in {path}: sampling leaves them beside its videos, NAME.ids.")
    tokenizer = pipeline.load_tokenizer(model_path)
    paths = []
    for saved in map(SavedIds, found):
        if path.is_dir() and not len(saved):
            warnings.warn(f"{saved.path} holds no latent frame yet: it is passed over.", stacklevel=2)
            continue
        request, pieces = pipeline.show_saved(saved, tokenizer)
        files = SampleFiles(workdir / "samples" / saved.path.stem, request.num_frames, saved.origin.fps, _outputs(job))
        progress, done = ProgressReport(f"decoding {saved.path.stem}", request.num_frames), 0
        with files, contextlib.closing(progress):
            begun = [] if saved.start is None else [saved.start[: request.num_frames]]
            for frames in itertools.chain(begun, (piece.frames[0] for piece in pieces)):
                files.write(frames)
                done += len(frames)
                progress.advance_to(done)
        for made in files.paths:
            say(f"wrote {made}")
        paths += files.paths
    return paths


class _Progress:
    """Frames and ids a second on the screen, and the time left."""

    def __init__(self, pipe: pipeline.Pipeline, batch: int, sampling: SamplingConfig):
        self._total, self._batch, self._ids_per_frame = pipe.num_frames(sampling), batch, pipe.ids_per_frame
        self._report = ProgressReport(f"sampling {batch} x {sampling.seconds:g} s", self._total)
        self._done, self._reported, self._num_parts = 0, 0.0, 0
        say("compiling the sampler")

    def add(self, num_frames: int, is_new: bool = True) -> None:
        """Count frames of each video; what is not new was saved."""
        now = time.perf_counter()
        self._done += num_frames
        if self._num_parts < _COMPILING:
            self._num_parts += is_new
            self._report.start_clock(self._done)
            self._reported = now
            return
        if now - self._reported > _REPORT_EVERY or self._done >= self._total:
            rate = self._report.rate(self._done)
            frames, ids = rate * self._batch, rate * self._batch * self._ids_per_frame
            self._report.report(self._done, f"frames, {frames:.1f} frames/s, {ids:,.0f} ids/s", rate)
            self._reported = now

    def close(self) -> None:
        self._report.close()


def _outputs(job: SampleJob) -> tuple[str, ...]:
    return tuple(job.outputs.split("|"))


def _read_start(job: SampleJob, pipe: pipeline.Pipeline) -> dict[str, np.ndarray]:
    """The image or the end of the video that all prompts start from, in the model's size and rate."""
    if job.image:
        with VideoFile(job.image, what="Image") as file:
            return {"image": file.read(size=pipe.frame_size, num_frames=1)[0]}
    if job.video:
        with VideoFile(job.video) as file:
            whole = pipe.tokenizer.config.whole_frames(round((file.duration or 0.0) * pipe.fps))
            # A multiple of the temporal factor, so that what is read is cut into latent frames as the whole video is.
            begin = max(0, whole - pipe.frames_read(job.sampling.over(pipe.sampling)))
            return {"video": file.read(size=pipe.frame_size, fps=pipe.fps, start=begin / pipe.fps)}
    return {}


def _stem(workdir: Path, index: int, prompt: str, seed: int) -> Path:
    name = re.sub(r"[^a-z0-9]+", "_", prompt.lower()).strip("_")[:_LONGEST_NAME] or "video"
    return workdir / "samples" / f"{index:02d}_{name}_seed{seed + index}"
