"""What a language model in training makes of held-out texts, to look at."""

import warnings
from typing import Any

import jax

from loong_jax.config import ConfigError, LanguageModelJob, MeshConfig
from loong_jax.pipeline import Pipeline
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.training.metrics import say
from loong_jax.video import Image, contact_sheet


class Previews:
    """Samples clips of the length that a training has, the same ones at each call but for the parameters."""

    def __init__(self, job: LanguageModelJob):
        """Say what is trained.

        Raises:
            ConfigError: ``job.num_previews`` is above 0 and there are several processes.
        """
        if job.num_previews and jax.process_count() > 1:
            raise ConfigError(
                f"num_previews={job.num_previews} is not possible with {jax.process_count()} processes, of which each "
                "has a part of the model: leave it at 0, and sample from a checkpoint with configs/sample.py."
            )
        self._job, self._pipe, self._is_possible = job, None, True

    def __call__(self, params: Any, tokenizer: VideoTokenizer, texts: list[str]) -> dict[str, Image]:
        """The picture "samples", with a row of frames for each text; none where they cannot be sampled."""
        try:
            return {"samples": self._sample(params, tokenizer, texts)} if self._is_possible else {}
        except Exception as error:  # of many types, as memory that runs out; a training does not end for a picture
            self._is_possible, self._pipe = False, None
            reason = " ".join(str(error).split())[:300]
            warnings.warn(f"The training goes on without samples.png: {reason}", stacklevel=2)
            return {}

    def _sample(self, params: Any, tokenizer: VideoTokenizer, texts: list[str]) -> Image:
        if self._pipe is None:
            mesh = jax.tree.leaves(params)[0].sharding.mesh
            self._pipe = Pipeline(self._job, params, tokenizer, MeshConfig(**mesh.shape))
            say(f"samples.png has a row for each of: {'; '.join(texts)}")
        data = self._job.data
        self._pipe.generator.take(params)
        with jax.set_mesh(None):  # the training's: the tokenizer is on one device
            videos = self._pipe(texts, self._job.seed, seconds=data.num_frames / data.fps)
        self._pipe.generator.take(None)  # or their copies, as the decoder reads them, would stay in memory
        return contact_sheet(list(videos), columns=min(10, data.num_frames))
