"""What a language model in training makes of held-out texts, to look at."""

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
        self._job, self._pipe = job, None

    def __call__(self, params: Any, tokenizer: VideoTokenizer, texts: list[str]) -> Image:
        """A row of frames for each text."""
        if self._pipe is None:
            mesh = jax.tree.leaves(params)[0].sharding.mesh
            self._pipe = Pipeline(self._job, params, tokenizer, MeshConfig(**mesh.shape))
            say(f"samples.png has a row for each of: {'; '.join(texts)}")
        self._pipe.generator.take(params)
        data = self._job.data
        videos = self._pipe(texts, self._job.seed, seconds=data.num_frames / data.fps)
        self._pipe.generator.take(None)  # or their copies, as the decoder reads them, would stay in memory
        return contact_sheet(list(videos), columns=min(10, data.num_frames))
