"""Run a SampleJob: prompts to video files, a batch of prompts at a time; or saved ids to video files."""

import contextlib
import datetime
import itertools
import re
import time
import warnings
from pathlib import Path

import numpy as np

from loong_jax import pipeline
from loong_jax.config import SampleJob, SamplingConfig
from loong_jax.data.prompts import parse_prompt, read_prompts
from loong_jax.sample_files import SampleFiles
from loong_jax.sampling.saved_ids import SavedIds
from loong_jax.training.metrics import ProgressReport, say
from loong_jax.video_file import VideoFile

_REPORT_EVERY = 5.0  # seconds
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
    prompts = read_prompts(job.prompt, job.prompts_file)
    pipe = pipeline.load(model_path, job.mesh)
    start, options = _read_start(job, pipe), vars(job.sampling.over(pipe.sampling))
    batches = {first: prompts[first : first + job.batch_size] for first in range(0, len(prompts), job.batch_size)}
    for first, batch in batches.items():  # an impossible one is said before hours go into the others
        pipe.request([parse_prompt(line) for line in batch], job.seed + first, **start, **options)
    paths = []
    for first, batch in batches.items():
        stems = [_stem(workdir, first + index, prompt, job.seed) for index, prompt in enumerate(batch)]
        paths += _sample_batch(job, pipe, batch, stems, job.seed + first, start)
    return paths


def sample_videos(pipe: pipeline.Pipeline, prompts: list[str], seed: int, sampling: SamplingConfig) -> np.ndarray:
    """One video per prompt, uint8 [prompts, frames, height, width, 3], with progress on the screen."""
    progress, parts = _Progress(pipe, len(prompts), sampling), []
    for frames in pipe.stream(prompts, seed, **vars(sampling)):
        parts.append(frames)
        progress.add(frames.shape[1])
    progress.close()
    return np.concatenate(parts, axis=1)


def write_sample(stem: Path, video: np.ndarray, fps: float) -> list[Path]:
    """Write ``stem``.mp4, .gif and a contact sheet .png of one video."""
    with SampleFiles(stem, len(video), fps, ("mp4", "gif", "sheet")) as files:
        files.write(video)
    return files.paths


def _sample_batch(
    job: SampleJob, pipe: pipeline.Pipeline, lines: list[str], stems: list[Path], seed: int, start: dict
) -> list[Path]:
    sampling = job.sampling.over(pipe.sampling)
    prompts, options = [parse_prompt(line) for line in lines], vars(sampling)
    request = pipe.request(prompts, seed, **start, **options)
    begun = [None] * len(prompts) if request.start is None else list(request.start)
    origins = pipe.origins(prompts, seed, **options)
    ids = [
        SavedIds.create(stem.with_name(f"{stem.name}.ids"), *of)
        for *of, stem in zip(origins, begun, stems, strict=True)
    ]
    files = [SampleFiles(stem, request.num_frames, pipe.fps, _outputs(job)) for stem in stems]
    paths = [path for file in files for path in file.paths]
    num_saved = min(len(saved) for saved in ids)
    is_whole = num_saved == pipe.generator.num_latents(request)
    if is_whole and all(_is_made_of(file.paths, saved) for file, saved in zip(files, ids, strict=True)):
        say(f"{', '.join(stem.name for stem in stems)}: there already")
        return paths
    num_saved = pipe.generator.num_whole(request, num_saved)
    for saved in ids:
        saved.keep(num_saved)
    if num_saved:
        say(f"going on after {num_saved} latent frames that were saved")
    progress = _Progress(pipe, len(prompts), sampling)
    with contextlib.ExitStack() as stack:
        for index, file in enumerate(files):
            stack.enter_context(file)
            if request.start is not None:
                file.write(request.start[index, : request.num_frames])
        pieces = pipe.generator.roll_out(request, np.stack([saved.read() for saved in ids]))
        for count, piece in enumerate(pieces):
            for index, (file, saved) in enumerate(zip(files, ids, strict=True)):
                if count >= num_saved:
                    saved.append(piece.ids[index])
                file.write(piece.frames[index])
            progress.add(piece.frames.shape[1], is_new=count >= num_saved)
    progress.close()
    for path in paths:
        say(f"wrote {path}")
    return paths


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
        for path in files.paths:
            say(f"wrote {path}")
        paths += files.paths
    return paths


class _Progress:
    """Frames and ids a second on the screen, and the time left."""

    def __init__(self, pipe: pipeline.Pipeline, batch: int, sampling: SamplingConfig):
        self._total, self._batch, self._ids_per_frame = pipe.num_frames(sampling), batch, pipe.ids_per_frame
        self._report = ProgressReport(f"sampling {batch} x {sampling.seconds:g} s", self._total)
        self._done = self._before = 0
        self._begin, self._reported = None, 0.0
        say("compiling the sampler")

    def add(self, num_frames: int, is_new: bool = True) -> None:
        """Count frames of each video; what is not new was saved."""
        now = time.perf_counter()
        self._done += num_frames
        if self._begin is None:  # the first frames are mostly compilation
            self._before = self._done
            self._begin = now if is_new else None
            return
        if now - self._reported > _REPORT_EVERY or self._done >= self._total:
            rate = (self._done - self._before) / (now - self._begin)
            left = datetime.timedelta(seconds=round(max(0, self._total - self._done) / rate))
            frames, ids = rate * self._batch, rate * self._batch * self._ids_per_frame
            self._report.report(self._done, f"frames, {frames:.1f} frames/s, {ids:,.0f} ids/s, {left} left")
            self._reported = now

    def close(self) -> None:
        self._report.close()


def _outputs(job: SampleJob) -> tuple[str, ...]:
    return tuple(job.outputs.split("|"))


def _read_start(job: SampleJob, pipe: pipeline.Pipeline) -> dict[str, np.ndarray]:
    """The image or the end of the video that all prompts start from, in the model's size and rate."""
    if job.image:
        with VideoFile(job.image) as file:
            return {"image": file.read(size=pipe.frame_size, num_frames=1)[0]}
    if job.video:
        with VideoFile(job.video) as file:
            begin = (file.duration or 0.0) - (pipe.frames_read(job.sampling.over(pipe.sampling)) + 1) / pipe.fps
            return {"video": file.read(size=pipe.frame_size, fps=pipe.fps, start=max(0.0, begin))}
    return {}


def _stem(workdir: Path, index: int, prompt: str, seed: int) -> Path:
    name = re.sub(r"[^a-z0-9]+", "_", prompt.lower()).strip("_")[:_LONGEST_NAME] or "video"
    return workdir / "samples" / f"{index:02d}_{name}_seed{seed + index}"
