"""Video of any length: rounds of one clip each, every round starting from the re-encoded last frames of the one before.

Re-encoding (Loong section 3.4): ids from the middle of a clip were made with knowledge of the frames before them, so
they are not what a clip starts with. The last frames are therefore decoded to pixels and encoded again as if a clip
began there, and the model continues from the text and these ids.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from loong_jax import sharding
from loong_jax.config import ConfigError, SamplingConfig, TransformerConfig
from loong_jax.data.sequences import places, prompt_ids
from loong_jax.sampling.decode import make_decoder
from loong_jax.sampling.logits import rules_of
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.vocab import LatentGrid, Vocabulary


@dataclasses.dataclass(frozen=True)
class Generator:
    """A language model and its tokenizer, ready to roll out clips of ``grid``."""

    model: TransformerConfig
    params: Any
    tokenizer: VideoTokenizer
    grid: LatentGrid  # of the clips the model was trained on
    max_text_ids: int
    mesh: Mesh

    def roll_out(
        self,
        texts: list[list[int]],
        num_frames: int,
        seeds: list[int],
        sampling: SamplingConfig,
        start: np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """Sample one video per text, yielding the new frames of each round, uint8 [batch, frames, height, width, 3].

        Args:
            texts: ids of each prompt.
            num_frames: frames of the whole video; the last round is cut to it.
            seeds: one per prompt; a prompt and its seed give the same video whatever else is in the batch.
            start: frames to continue from, uint8 [batch, 1 + m x temporal_factor, height, width, 3], not yielded again.
        """
        config = self.tokenizer.config
        kept_latents = config.latent_frames(sampling.reencode_frames)
        if kept_latents >= self.grid.frames:
            raise ConfigError(
                f"sampling.reencode_frames={sampling.reencode_frames} leaves no room for new frames in a clip of "
                f"{config.pixel_frames(self.grid.frames)}: choose fewer."
            )
        clips = _ClipSampler(self, texts, sampling, kept_latents)
        done, prefix = 0, start
        for round_id in range(10**9):
            keys = jnp.stack([jax.random.fold_in(jax.random.key(seed), round_id) for seed in seeds])
            known = None if prefix is None else self.tokenizer.encode(prefix)
            video = self.tokenizer.decode(clips.sample(known, keys))
            new = video if prefix is None else video[:, prefix.shape[1] :]
            yield new[:, : num_frames - done]
            done += new.shape[1]
            if done >= num_frames:
                return
            prefix = video[:, -sampling.reencode_frames :]


class _ClipSampler:
    """Samples the ids of one clip per prompt; compiled once for all rounds."""

    def __init__(self, generator: Generator, texts: list[list[int]], sampling: SamplingConfig, kept_latents: int):
        self._grid, self._rope = generator.grid, generator.model.rope
        self._vocabulary = Vocabulary(generator.model.num_text_ids, generator.model.num_video_ids)
        is_guided = sampling.is_guided
        # The devices share the rows evenly: the last prompt is repeated until they do.
        self._padding = -len(texts) % sharding.num_parts(generator.mesh, "batch")
        texts = texts + self._padding * texts[-1:]
        self._prompts = [
            prompt_ids(ids, self._vocabulary)
            for text in texts
            for ids in ([text[: generator.max_text_ids], None] if is_guided else [text[: generator.max_text_ids]])
        ]
        self._repeats = 2 if is_guided else 1
        num_markers = 3
        self._prompt_slots = generator.max_text_ids + num_markers + kept_latents * self._grid.ids_per_frame
        self._decoder = make_decoder(
            generator.model,
            generator.mesh,
            batch=len(texts),
            is_guided=is_guided,
            prompt_slots=self._prompt_slots,
            max_steps=self._grid.num_ids,
            frame_steps=self._grid.ids_per_frame,
        )
        self._rules = [rules_of(sampling, is_continuing, self._grid.frames) for is_continuing in (False, True)]
        self._params = self._decoder.prepare(generator.params)
        self._cache = self._decoder.new_cache()

    def sample(self, known: np.ndarray | None, keys: jax.Array) -> np.ndarray:
        """Ids [batch, frames, h, w] of a clip whose first latent frames are ``known`` [batch, n, h, w]."""
        batch, rules = len(keys), self._rules[known is not None]
        if known is None:
            known = np.zeros((batch, 0, self._grid.height, self._grid.width), np.int32)
        known = np.pad(known.reshape(batch, -1), ((0, self._padding), (0, 0)), mode="edge")
        keys = keys[np.minimum(np.arange(batch + self._padding), batch - 1)]
        num_steps, num_known = self._grid.ids_per_frame, known.shape[1] // self._grid.ids_per_frame
        rows = (self._vocabulary.video_start + known).repeat(self._repeats, axis=0)
        tokens, positions, valid, following = self._left_padded(
            [[*prompt, *row] for prompt, row in zip(self._prompts, rows, strict=True)]
        )
        cache, logits, codes = self._decoder.prefill(self._params, self._cache, tokens, positions, valid)
        frames = [known]
        for index, rule in enumerate(rules[num_known:]):
            cache, logits, codes = self._decoder.decode(
                self._params, cache, logits, codes, following, index * num_steps, num_steps, keys, rule
            )
            frames.append(codes)
        self._cache = cache
        codes = np.concatenate(frames, axis=1)
        return codes[:batch].reshape(batch, self._grid.frames, self._grid.height, self._grid.width)

    def _left_padded(self, sequences: list[list[int]]) -> tuple[np.ndarray, ...]:
        """Tokens, positions and validity [rows, prompt_slots], and the positions [rows, steps] that follow each row."""
        tokens = np.full((len(sequences), self._prompt_slots), self._vocabulary.special("pad"), np.int32)
        valid = np.zeros_like(tokens, bool)
        positions, following = [], []
        for row, (sequence, prompt) in enumerate(zip(sequences, self._prompts, strict=True)):
            tokens[row, -len(sequence) :] = sequence
            valid[row, -len(sequence) :] = True
            every = places(len(prompt), self._grid, self._rope)
            before = [(self._prompt_slots - len(sequence), 0)] + [(0, 0)] * (every.ndim - 1)
            positions.append(np.pad(every[: len(sequence)], before))
            steps = np.arange(len(sequence), len(sequence) + self._grid.num_ids)
            following.append(every[np.minimum(steps, len(every) - 1)])
        return tokens, np.stack(positions), valid, np.stack(following)
