"""The public face: load a trained model, and turn prompts into videos."""

import dataclasses
import functools
import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from loong_jax import checkpoint, sharding
from loong_jax.chips import host_memory
from loong_jax.config import ConfigError, DecodingConfig, LanguageModelJob, MeshConfig, SamplingConfig, in_all_rounds
from loong_jax.config_dict import build, from_config_dict
from loong_jax.data.scripts import Prompt, Script, checked_text, read_scripts, shortened
from loong_jax.data.text import TextTokenizer
from loong_jax.hub import HUB, fetch
from loong_jax.model_folder import PACKAGE, is_model_folder, packaged, read_model
from loong_jax.models import transformer
from loong_jax.sampling.long_video import Generator, Piece, Request, num_shown, show
from loong_jax.sampling.rounds import most_kept
from loong_jax.sampling.saved_ids import Origin, SavedIds
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.vocab import LatentGrid

_LOOKED_AT = 256  # values of a parameter, by which models are told apart

Seed = int | list[int]  # of the first video of a batch, or of every one


class Pipeline:
    """Text to video with one trained language model and its tokenizer.

    ``fps`` and ``frame_size`` are those of its videos; ``sampling`` is how they are sampled where nothing else is asked
    for; ``job`` is the training that it comes from, ``params`` are the parameters, ``generator`` rolls videos out.
    """

    def __init__(
        self,
        job: LanguageModelJob,
        params,
        tokenizer: VideoTokenizer,
        mesh: MeshConfig | None = None,
        text_ids: list[int] | None = None,
    ):
        """Wrap a model; ``job`` is the training it comes from, ``text_ids`` are those it knows (None: all)."""
        size = tokenizer.config.latent_size(job.data.frame_size)
        self.fps = job.data.fps
        self.frame_size = job.data.frame_size
        # Decoding is of the machine, whatever that of the training was.
        self.sampling = dataclasses.replace(job.sampling, decoding=DecodingConfig())
        self.job, self.params = job, params
        self._text, self.known_text_ids = TextTokenizer(), None if text_ids is None else frozenset(text_ids)
        self.generator = Generator(
            model=job.model,
            params=params,
            tokenizer=tokenizer,
            grid=LatentGrid(tokenizer.config.latent_frames(job.data.num_frames), size, size),
            max_text_ids=job.data.max_text_ids,
            mesh=sharding.make_mesh(mesh or MeshConfig()),
        )

    def __call__(self, prompt: Prompt | list[Prompt], seed: Seed = 0, image=None, video=None, **sampling) -> np.ndarray:
        """Sample a video, uint8 [frames, height, width, 3]; for a list of prompts [batch, ...].

        Args:
            prompt: what the video shows: a text, or a list of (second, text) that says from when on it shows what. The
                prompts of a batch change at the same seconds.
            seed: the same seed gives the same video, whatever else is in the batch; prompt i of a list has seed + i, or
                the i-th of a list of seeds.
            image: first frame, uint8 [height, width, 3], as the model's frame size.
            video: frames to continue, uint8 [frames, height, width, 3], of which whole latent frames are read: the
                first one, and so many times ``temporal_factor``. The result begins with the last of these, as many as a
                round starts from (``frames_read``), and its seconds count from them.
            **sampling: fields of ``SamplingConfig``, as seconds, temperature, top_k, guidance_scale, negative_prompt;
                what is left out is as the model's training says (``pipe.sampling``).

        Raises:
            ValueError: a field is unknown or impossible, image or video has another size than the model's frames, or
                this machine's memory cannot hold the video.
        """
        scripts, is_batch = read_scripts(prompt)
        request = self._request(scripts, seed, image, video, self.sampling_with(sampling))
        batch, num_frames = len(scripts), request.num_frames
        num_bytes = 2 * batch * num_frames * self.frame_size**2 * 3  # parts, and the whole made of them
        if num_bytes > host_memory():
            raise ValueError(
                f"{batch} x {num_frames} frames need {num_bytes / 2**30:.0f} GiB, more than this machine has: take "
                "them from pipe.stream as they come."
            )
        videos = np.concatenate(list(self._frames(request)), axis=1)
        return videos if is_batch else videos[0]

    def stream(
        self, prompt: Prompt | list[Prompt], seed: Seed = 0, image=None, video=None, **sampling
    ) -> Iterator[np.ndarray]:
        """Like calling, but yields the frames of every latent frame as soon as they are decoded.

        While they are looked at, the next ones are being sampled. What is impossible is said at once, before the first
        frame is asked for.
        """
        scripts, is_batch = read_scripts(prompt)
        frames = self._frames(self._request(scripts, seed, image, video, self.sampling_with(sampling)))
        return frames if is_batch else (batch[0] for batch in frames)

    def _frames(self, request: Request) -> Iterator[np.ndarray]:
        """What the videos begin with, then what is sampled, [batch, frames, height, width, 3]."""
        if request.start is not None:
            yield request.start[:, : request.num_frames]
        for piece in self.generator.roll_out(request):
            yield piece.frames

    def request(self, prompt: Prompt | list[Prompt], seed: Seed = 0, image=None, video=None, **sampling) -> Request:
        """What ``stream`` would sample, for ``generator.roll_out``, which gives ids besides; and the same errors."""
        return self._request(read_scripts(prompt)[0], seed, image, video, self.sampling_with(sampling))

    def _request(self, scripts: list[Script], seed: Seed, image, video, config: SamplingConfig) -> Request:
        if config.negative_prompt and not config.is_guided:
            raise ConfigError("sampling.negative_prompt needs a guidance_scale above 1: give one, or leave it out.")
        self._warn_of_unseen_texts(scripts[0], config)
        request = Request(
            texts=[[self._read(script[segment][1]) for script in scripts] for segment in range(len(scripts[0]))],
            seeds=_checked_seeds(seed, len(scripts)),
            num_frames=self.num_frames(config),
            sampling=config,
            negative=self._read(checked_text(config.negative_prompt)) if config.negative_prompt else None,
            changes=_changes(scripts[0], self.fps),
            start=self._start(image, video, config, len(scripts)),
        )
        self.generator.check(request)
        return request

    def _warn_of_unseen_texts(self, script: Script, config: SamplingConfig) -> None:
        """Texts change between latent frames: one that holds for less than such may never have its turn."""
        factor = self.generator.tokenizer.config.temporal_factor
        starts = [0, *_changes(script, self.fps)]
        for (second, text), start, end in zip(script, starts, [*starts[1:], self.num_frames(config)], strict=True):
            if second >= config.seconds:
                warnings.warn(
                    f"The text is to change at {second:g} s, and the video ends at {config.seconds:g} s.", stacklevel=4
                )
            elif len(script) > 1 and end - start < factor:
                warnings.warn(
                    f"The text {shortened(text)} holds from {second:g} s on for {max(0, end - start)} frames, and may "
                    f"not be seen: give it {factor / self.fps:.2g} s or more.",
                    stacklevel=4,
                )

    def origins(self, prompt: Prompt | list[Prompt], seed: Seed = 0, **sampling) -> list[Origin]:
        """What each video of such a request is sampled from, as it is kept with saved ids."""
        scripts, config = read_scripts(prompt)[0], self.sampling_with(sampling)
        return [
            Origin(
                model=self.fingerprint,
                tokenizer=self.generator.tokenizer.fingerprint,
                script=tuple(script),
                seed=own,
                sampling=config,
                fps=self.fps,
                frame_size=self.frame_size,
                clip=self.generator.grid,
            )
            for script, own in zip(scripts, _checked_seeds(seed, len(scripts)), strict=True)
        ]

    def sampling_with(self, changes: dict) -> SamplingConfig:
        """The model's own settings with those that a user gives by name; unknown and impossible ones are errors."""
        own = vars(self.sampling)
        if changes.keys() - own.keys():
            name = sorted(changes.keys() - own.keys())[0]
            raise ValueError(f"{name} is not a sampling option: use {', '.join(sorted(own))}.")
        plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in changes.items()}
        return build(SamplingConfig, own | in_all_rounds(plain), "sampling")

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the model, by its settings and the first values of every parameter, on whatever devices these lie."""
        first = jax.jit(lambda params: [x[(0,) * (x.ndim - 1)][:_LOOKED_AT] for x in jax.tree.leaves(params)])(
            self.params
        )
        digest = hashlib.sha256(repr(self.job.model).encode())
        for values in jax.device_get(first):
            digest.update(values.tobytes())
        return digest.hexdigest()[:16]

    def num_frames(self, config: SamplingConfig) -> int:
        """Frames of a video that is sampled so."""
        return _num_frames(config, self.fps)

    def frames_read(self, config: SamplingConfig) -> int:
        """Frames at the end of a given video that are read to continue it so."""
        tokenizer = self.generator.tokenizer.config
        return tokenizer.pixel_frames(most_kept(config, tokenizer))

    @property
    def tokenizer(self) -> VideoTokenizer:
        """Of the model: videos to ids and back."""
        return self.generator.tokenizer

    @property
    def ids_per_frame(self) -> float:
        """Ids that stand for one frame, on average."""
        return self.generator.grid.ids_per_frame / self.generator.tokenizer.config.temporal_factor

    def num_text_ids(self, prompt: str) -> int:
        """Ids of a text, of which the model reads the first ``generator.max_text_ids``."""
        return len(self._encode(checked_text(prompt)))

    def _encode(self, prompt: str) -> list[int]:
        """Ids of a text; line breaks and several spaces, which captions do not have, are one space."""
        return self._text.encode(" ".join(prompt.split()))

    def _read(self, prompt: str) -> list[int]:
        ids, limit = self._encode(prompt), self.generator.max_text_ids
        if len(ids) > limit:
            warnings.warn(
                f"The prompt {shortened(prompt)} has {len(ids)} text ids; the model reads the first {limit}.",
                stacklevel=4,
            )
        known = self.known_text_ids
        if known is not None and not known.issuperset(ids):
            words = [word for word in prompt.split() if not known.issuperset(self._text.encode(word))]
            unknown = shortened(" ".join(words))
            warnings.warn(
                f"The model takes no notice of {unknown}: no text it was trained on has these words.", stacklevel=4
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
        # As the tokenizer cuts a video from its start on: a model's own goes on as it would have without an end.
        whole = frames[: self.tokenizer.config.whole_frames(len(frames))]
        usable = whole[-self.frames_read(config) :]
        return np.broadcast_to(usable, (batch, *usable.shape)).copy()


def _checked_seeds(seed: Seed, batch: int) -> list[int]:
    if isinstance(seed, list):
        if len(seed) != batch:
            raise ValueError(f"{len(seed)} seeds for {batch} prompts: give one each, or the first.")
        return [_checked_seeds(own, 1)[0] for own in seed]
    is_possible = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool) and 0 <= seed <= 2**31 - batch
    if not is_possible:
        raise ValueError(f"seed={shortened(seed)} is not possible: give an integer from 0 to {2**31 - batch}.")
    return [int(seed) + index for index in range(batch)]


def load(folder: str | Path = "package:digits", mesh: MeshConfig | None = None) -> Pipeline:
    """The pipeline of a model folder, or of the newest checkpoint in the workdir of a language-model training.

    Args:
        folder: also "hf:OWNER/NAME", a model folder on the Hugging Face Hub (needs the extra [hub]), and
            "package:digits", the model of moving digits that travels with the package.
        mesh: how the model lies on the devices.

    Raises:
        ValueError: there is none, or its tokenizer is missing or has changed since.
    """
    workdir = found(folder)
    if is_model_folder(workdir):
        job, params, tokenizer, text_ids = read_model(workdir, sharding.make_mesh(mesh or MeshConfig()))
        return Pipeline(job, params, tokenizer, mesh, text_ids)
    job, tokenizer = _load_job_and_tokenizer(workdir)
    _, abstract = transformer.abstract_params(job.model)
    shardings = sharding.tree_shardings(
        sharding.make_mesh(mesh or MeshConfig()), abstract, transformer.logical_axes(job.model)
    )
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
    params = checkpoint.load_weights(workdir, abstract, job.ema_decay)
    return Pipeline(job, params, tokenizer, mesh)


def load_tokenizer(folder: str | Path) -> VideoTokenizer:
    """The tokenizer of the language model in ``folder``; errors as of ``load``."""
    folder = found(folder)
    return VideoTokenizer.load(folder) if is_model_folder(folder) else _load_job_and_tokenizer(folder)[1]


def found(folder: str | Path, workdir: Path = Path()) -> Path:
    """Where a model is: "hf:OWNER/NAME" is fetched, "package:NAME" is here, a folder is relative to ``workdir``.

    Raises:
        ValueError: the hub does not give it, or the package does not have it.
    """
    text = str(folder)
    if text.startswith(PACKAGE):
        return packaged(text.removeprefix(PACKAGE))
    return fetch(text.removeprefix(HUB)) if text.startswith(HUB) else (workdir / folder).resolve()


def show_saved(saved: SavedIds, tokenizer: VideoTokenizer) -> tuple[Request, Iterator[Piece]]:
    """What a file of saved ids was sampled for, as far as there are ids, and its latent frames with their frames.

    Raises:
        ValueError: ``tokenizer`` is not the one of its model, or there is no latent frame.
    """
    origin = saved.origin
    if not len(saved):
        raise ValueError(f"{saved.path} holds no latent frame yet.")
    if origin.tokenizer != tokenizer.fingerprint:
        raise ValueError(
            f"{saved.path} holds ids of tokenizer {origin.tokenizer}, and this one is {tokenizer.fingerprint}, for "
            "which they mean other pictures: give the model_path that the video was sampled with."
        )
    request = Request(
        texts=[],
        seeds=[origin.seed],
        num_frames=_num_frames(origin.sampling, origin.fps),
        sampling=origin.sampling,
        changes=_changes(origin.script, origin.fps),
        start=None if saved.start is None else saved.start[None],
    )
    there = num_shown(request, len(saved), tokenizer, origin.clip)
    request = dataclasses.replace(request, num_frames=there)
    return request, show(request, saved.read()[None], tokenizer, origin.clip)


def _load_job_and_tokenizer(workdir: Path) -> tuple[LanguageModelJob, VideoTokenizer]:
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
    return job, tokenizer


def _num_frames(config: SamplingConfig, fps: float) -> int:
    return max(1, round(config.seconds * fps))


def _changes(script, fps: float) -> tuple[int, ...]:
    """Frames from which on the second, third, ... text of a script is shown."""
    return tuple(round(second * fps) for second, _ in script[1:])
