"""The public face: load a trained model, and turn prompts into videos."""

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from loong_jax import checkpoint, sharding
from loong_jax.chips import host_memory
from loong_jax.config import LanguageModelJob, MeshConfig, SamplingConfig
from loong_jax.config_dict import build, from_config_dict
from loong_jax.data.text import TextTokenizer
from loong_jax.models import transformer
from loong_jax.sampling.long_video import Generator
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.vocab import LatentGrid


class Pipeline:
    """Text to video with one trained language model and its tokenizer."""

    def __init__(self, job: LanguageModelJob, params, tokenizer: VideoTokenizer, mesh: MeshConfig | None = None):
        """Wrap a model; ``job`` is the training it comes from."""
        size = tokenizer.config.latent_size(job.data.frame_size)
        self.fps = job.data.fps
        self.frame_size = job.data.frame_size
        self._text = TextTokenizer()
        self._generator = Generator(
            model=job.model,
            params=params,
            tokenizer=tokenizer,
            grid=LatentGrid(tokenizer.config.latent_frames(job.data.num_frames), size, size),
            max_text_ids=job.data.max_text_ids,
            mesh=sharding.make_mesh(mesh or MeshConfig()),
        )

    def __call__(self, prompt: str | list[str], seed: int = 0, image=None, video=None, **sampling) -> np.ndarray:
        """Sample a video, uint8 [frames, height, width, 3]; for a list of prompts [batch, ...].

        Args:
            prompt: what the video shows.
            seed: the same seed gives the same video, whatever else is in the batch; prompt i of a list has seed + i.
            image: first frame, uint8 [height, width, 3], as the model's frame size.
            video: frames to continue, uint8 [frames, height, width, 3].
            **sampling: fields of ``SamplingConfig``: seconds, temperature, top_k, top_p, min_p, guidance_scale,
                reencode_frames.

        Raises:
            ValueError: a field is unknown or impossible, image or video has another size than the model's frames, or
                this machine's memory cannot hold the video.
        """
        parts = self.stream(prompt, seed, image=image, video=video, **sampling)
        batch = 1 if isinstance(prompt, str) else len(prompt)
        num_frames = self.num_frames(_sampling_config(sampling))
        num_bytes = 2 * batch * num_frames * self.frame_size**2 * 3  # parts, and the whole made of them
        if num_bytes > host_memory():
            raise ValueError(
                f"{batch} x {num_frames} frames need {num_bytes / 2**30:.0f} GiB, more than this machine has: take "
                "them from pipe.stream as they come."
            )
        return np.concatenate(list(parts), axis=-4)

    def stream(
        self, prompt: str | list[str], seed: int = 0, image=None, video=None, **sampling
    ) -> Iterator[np.ndarray]:
        """Like calling, but yields the new frames of every round as soon as they are decoded.

        What is impossible is said at once, before the first frame is asked for.
        """
        config = _sampling_config(sampling)
        prompts = _checked_prompts(prompt)
        first_seed = _checked_seed(seed, len(prompts))
        start = self._start(image, video, config, len(prompts))
        texts = [self._read(text) for text in prompts]
        seeds = [first_seed + index for index in range(len(prompts))]
        videos = self._videos(texts, seeds, config, start)
        return (frames[0] for frames in videos) if isinstance(prompt, str) else videos

    def num_frames(self, config: SamplingConfig) -> int:
        """Frames of a video that is sampled so."""
        return max(1, round(config.seconds * self.fps))

    @property
    def ids_per_frame(self) -> float:
        """Ids that stand for one frame, on average."""
        return self._generator.grid.ids_per_frame / self._generator.tokenizer.config.temporal_factor

    def _videos(
        self, texts: list[list[int]], seeds: list[int], config: SamplingConfig, start: np.ndarray | None
    ) -> Iterator[np.ndarray]:
        """What is given of the videos, then what is sampled, [batch, frames, height, width, 3]."""
        num_frames = self.num_frames(config)
        if start is not None:
            yield start[:, :num_frames]
            num_frames -= start.shape[1]
        if num_frames > 0:
            yield from self._generator.roll_out(texts, num_frames, seeds, config, start)

    def _read(self, prompt: str) -> list[int]:
        ids, limit = self._text.encode(prompt), self._generator.max_text_ids
        if len(ids) > limit:
            warnings.warn(
                f"The prompt {_short(prompt)} has {len(ids)} text ids; the model reads the first {limit}.",
                stacklevel=4,
            )
        return ids

    def _start(self, image, video, config: SamplingConfig, batch: int) -> np.ndarray | None:
        """The frames to begin with, [batch, t, height, width, 3], or None."""
        if image is not None and video is not None:
            raise ValueError("Give an image or a video to start from, not both.")
        if image is None and video is None:
            return None
        try:
            frames = np.asarray(image)[None] if image is not None else np.asarray(video)
        except ValueError as error:
            raise ValueError(f"What to start from must be one array of pixels, and is not ({error}).") from None
        size = (self.frame_size, self.frame_size, 3)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != size or not len(frames):
            raise ValueError(
                f"The model's frames are uint8 [{size[0]}, {size[1]}, 3]; got {frames.dtype} {frames.shape[1:]} x "
                f"{len(frames) if frames.ndim else 0}: resize them (read_video takes size=...)."
            )
        factor = self._generator.tokenizer.config.temporal_factor
        usable = min(len(frames), config.reencode_frames)
        usable -= (usable - 1) % factor
        return np.broadcast_to(frames[-usable:], (batch, usable, *size)).copy()


def _sampling_config(values: dict) -> SamplingConfig:
    """The settings that a user gives by name; unknown and impossible ones are errors."""
    known = {field.name for field in dataclasses.fields(SamplingConfig)}
    if values.keys() - known:
        name = sorted(values.keys() - known)[0]
        raise ValueError(f"{name} is not a sampling option: use {', '.join(sorted(known))}.")
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
    return build(SamplingConfig, plain, "sampling")


def _checked_prompts(prompt: str | list[str]) -> list[str]:
    prompts = [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, (list, tuple)) else []
    if not prompts or any(not isinstance(text, str) or not text.strip() for text in prompts):
        raise ValueError(f"A prompt must be some text, or a list of texts; got {_short(prompt)}.")
    for text in prompts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"The prompt {_short(text)} is not Unicode text: give it in UTF-8.") from None
    return prompts


def _checked_seed(seed: int, batch: int) -> int:
    is_possible = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool) and 0 <= seed <= 2**31 - batch
    if not is_possible:
        raise ValueError(f"seed={_short(seed)} is not possible: give an integer from 0 to {2**31 - batch}.")
    return int(seed)


def _short(value) -> str:
    text = ascii(value) if isinstance(value, (str, bytes)) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def load(workdir: str | Path, mesh: MeshConfig | None = None) -> Pipeline:
    """The pipeline of the newest checkpoint in the workdir of a language-model training.

    Raises:
        ValueError: there is none, or its tokenizer is missing or has changed since.
    """
    workdir = Path(workdir)
    meta = checkpoint.load_meta(workdir)
    job = from_config_dict(meta["config"])
    if not isinstance(job, LanguageModelJob):
        raise ValueError(
            f"{workdir} holds a training of task {job.task!r}: give the workdir of a language-model training."
        )
    tokenizer_path = (workdir / job.tokenizer_path).resolve()
    if job.allow_untrained_tokenizer and not tokenizer_path.is_dir():
        tokenizer = VideoTokenizer.untrained(job.tokenizer)
    else:
        tokenizer = VideoTokenizer.load(tokenizer_path)
    if tokenizer.fingerprint != meta["tokenizer_fingerprint"]:
        raise ValueError(
            f"The model in {workdir} was trained on ids of tokenizer {meta['tokenizer_fingerprint']}, but "
            f"{tokenizer_path} holds {tokenizer.fingerprint}: its ids mean other pictures. "
            "Bring back the tokenizer it was trained with."
        )
    _, abstract = transformer.abstract_params(job.model)
    shardings = sharding.tree_shardings(
        sharding.make_mesh(mesh or MeshConfig()), abstract, transformer.logical_axes(job.model)
    )
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
    params = checkpoint.load_weights(workdir, abstract)
    return Pipeline(job, params, tokenizer, mesh)
