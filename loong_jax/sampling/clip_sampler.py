"""The ids of one clip for every prompt of a batch, a latent frame at a time."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from loong_jax.config import DecodingConfig, SamplingConfig
from loong_jax.data.sequences import places, prompt_ids
from loong_jax.sampling.decode import Decoder
from loong_jax.sampling.logits import rules_of
from loong_jax.vocab import LatentGrid, Vocabulary

_NUM_MARKERS = 3  # begin_text, end_text, begin_video


@dataclasses.dataclass(frozen=True)
class ClipShape:
    """What a decoder is compiled for: ``batch`` clips of ``grid`` from prompts of at most ``max_text_ids``."""

    grid: LatentGrid
    batch: int
    candidates: int  # of which so many are of the same prompt, and the likeliest is wanted
    is_guided: bool  # two rows a prompt, of which the second has the text that is to be avoided
    max_text_ids: int
    max_known: int  # latent frames that a clip may start with
    decoding: DecodingConfig

    def length(self, num_latents: int) -> int:
        """Ids of a prompt and so many latent frames, where the prompt is of the longest."""
        return self.max_text_ids + _NUM_MARKERS + num_latents * self.grid.ids_per_frame


class ClipSampler:
    """Samples one clip after another in a cache of its own."""

    def __init__(
        self,
        shape: ClipShape,
        decoder: Decoder,
        params: Any,
        vocabulary: Vocabulary,
        rope: str,
        sampling: SamplingConfig,
        negative: list[int] | None,
    ):
        """Start with an empty cache.

        Args:
            shape: what ``decoder`` was made for.
            decoder: prefills and decodes.
            params: the model's, as the decoder prepares them.
            vocabulary: where video codes lie.
            rope: ``model.rope``.
            sampling: the rules.
            negative: with guidance, ids of the text to stay away from; None is the null text.
        """
        self._shape, self._decoder, self._params = shape, decoder, params
        self._vocabulary, self._rope, self._negative = vocabulary, rope, negative
        self._rules = [rules_of(sampling, is_continuing, shape.grid.frames) for is_continuing in (False, True)]
        self._cache = decoder.new_cache()

    def sample(
        self, texts: list[list[int]], known: Int[np.ndarray, "b n h w"] | None, keys: list[jax.Array], num_new: int
    ) -> Iterator[Int[jax.Array, "b h w"]]:
        """``num_new`` latent frames of a clip that starts with ``known``, or of one at the beginning of a video.

        A frame is yielded as soon as its computation has been started; of several candidates those of the likeliest
        one, once all have been sampled. Fewer clips than the shape has are made up for with copies of the last.

        Args:
            texts: ids of a prompt for each video.
            known: ids of each video; None at its beginning.
            keys: for each video, of each of its candidates.
            num_new: latent frames; with the known ones no more than a clip has.
        """
        frames = self._sample(texts, known, keys, num_new)
        if self._shape.candidates == 1:
            yield from (codes for codes, *_ in frames)
            return
        codes, likelihoods = zip(*frames, strict=True)
        every = np.stack(codes, axis=1).reshape(len(texts), self._shape.candidates, num_new, *codes[0].shape[1:])
        best = np.sum(likelihoods, axis=0).reshape(len(texts), -1).argmax(axis=1)
        yield from every[np.arange(len(texts)), best].swapaxes(0, 1)

    def _sample(self, texts, known, keys, num_new) -> Iterator[tuple[jax.Array, ...]]:
        """Latent frames of all candidates, with their log-likelihoods where there are several."""
        grid, batch = self._shape.grid, len(keys)
        rules = self._rules[known is not None]
        num_known = 0 if known is None else known.shape[1]
        known = np.zeros((len(texts), 0), np.int32) if known is None else known.reshape(len(texts), -1)
        of = np.minimum(np.arange(self._shape.batch), batch - 1)
        sequences = []
        for index in of // self._shape.candidates:
            for text in [texts[index], self._negative][: 2 if self._shape.is_guided else 1]:
                sequences.append((self._prompt(text), self._vocabulary.video_start + known[index]))
        first_slot = self._shape.length(num_known)
        # Prefill is compiled for two widths: of prompts alone, and of those that as many frames follow as there may be.
        width = self._shape.length(self._shape.max_known if num_known else 0)
        tokens, positions, valid, following = self._padded(sequences, first_slot, width)
        keys, steps = jnp.stack([keys[index] for index in of]), grid.ids_per_frame
        cache, logits, codes = self._decoder.prefill(self._params, self._cache, tokens, positions, valid)
        for index, rule in enumerate(rules[num_known : num_known + num_new]):
            cache, logits, codes, *likelihood = self._decoder.decode(
                self._params, cache, logits, codes, following, first_slot, index * steps, steps, keys, rule
            )
            self._cache = cache
            yield codes[:batch].reshape(batch, grid.height, grid.width), *(part[:batch] for part in likelihood)

    def _prompt(self, text: list[int] | None) -> list[int]:
        ids = None if text is None else text[: self._shape.max_text_ids]
        return prompt_ids(ids, self._vocabulary, is_image=self._shape.grid.frames == 1)

    def _padded(
        self, sequences: list[tuple[list[int], Int[np.ndarray, " n"]]], end: int, width: int
    ) -> tuple[np.ndarray, ...]:
        """Tokens, positions and validity [rows, width] of sequences that all end at ``end``, where the steps begin.

        Besides the positions [rows, steps] that follow each row.
        """
        grid = self._shape.grid
        tokens = np.full((len(sequences), width), self._vocabulary.special("pad"), np.int32)
        valid = np.zeros_like(tokens, bool)
        positions, following = [], []
        for row, (prompt, known) in enumerate(sequences):
            length = len(prompt) + len(known)
            tokens[row, end - length : end] = [*prompt, *known]
            valid[row, end - length : end] = True
            every = places(len(prompt), grid, self._rope)
            around = [(end - length, width - end)] + [(0, 0)] * (every.ndim - 1)
            positions.append(np.pad(every[:length], around))
            steps = np.arange(length, length + grid.num_ids)
            following.append(every[np.minimum(steps, len(every) - 1)])
        return tokens, np.stack(positions), valid, np.stack(following)
