"""The public face: load a trained model, and turn prompts into videos."""

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from loong_jax import checkpoint, sharding
from loong_jax.config import LanguageModelJob, MeshConfig, SamplingConfig
from loong_jax.config_dict import from_config_dict
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
            ValueError: a field is unknown or impossible, or image or video has another size than the model's frames.
        """
        parts = list(self.stream(prompt, seed, image=image, video=video, **sampling))
        return np.concatenate(parts, axis=-4)

    def stream(
        self, prompt: str | list[str], seed: int = 0, image=None, video=None, **sampling
    ) -> Iterator[np.ndarray]:
        """Like calling, but yields the new frames of every round as soon as they are decoded."""
        known = {field.name for field in dataclasses.fields(SamplingConfig)}
        if sampling.keys() - known:
            name = sorted(sampling.keys() - known)[0]
            raise ValueError(f"{name} is not a sampling option: use {', '.join(sorted(known))}.")
        config = SamplingConfig(**sampling)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts or any(not isinstance(text, str) or not text.strip() for text in prompts):
            raise ValueError(f"A prompt must be some text, or a list of texts; got {prompt!r}.")
        start = self._start(image, video, config, len(prompts))
        num_frames = max(1, round(config.seconds * self.fps))
        num_given = 0
        if start is not None:
            given = start[:, :num_frames]
            yield given[0] if isinstance(prompt, str) else given
            num_given = given.shape[1]
        if num_given < num_frames:
            texts = [self._read(text) for text in prompts]
            seeds = [seed + index for index in range(len(prompts))]
            for frames in self._generator.roll_out(texts, num_frames - num_given, seeds, config, start):
                yield frames[0] if isinstance(prompt, str) else frames

    def _read(self, prompt: str) -> list[int]:
        ids, limit = self._text.encode(prompt), self._generator.max_text_ids
        if len(ids) > limit:
            warnings.warn(
                f"The prompt {prompt!r} has {len(ids)} text ids; the model reads the first {limit}.", stacklevel=4
            )
        return ids

    def _start(self, image, video, config: SamplingConfig, batch: int) -> np.ndarray | None:
        """The frames to begin with, [batch, t, height, width, 3], or None."""
        if image is not None and video is not None:
            raise ValueError("Give an image or a video to start from, not both.")
        if image is None and video is None:
            return None
        frames = np.asarray(image)[None] if image is not None else np.asarray(video)
        size = (self.frame_size, self.frame_size, 3)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != size:
            raise ValueError(
                f"The model's frames are uint8 [{size[0]}, {size[1]}, 3]; got {frames.dtype} {frames.shape[1:]}: "
                "resize them (read_video takes size=...)."
            )
        factor = self._generator.tokenizer.config.temporal_factor
        usable = min(len(frames), config.reencode_frames)
        usable -= (usable - 1) % factor
        return np.broadcast_to(frames[-usable:], (batch, usable, *size)).copy()


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
