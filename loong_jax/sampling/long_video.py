"""Video of any length: rounds of one clip each, every one starting from what ``continuation`` keeps of those before."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, UInt8

from loong_jax import sharding
from loong_jax.config import ConfigError, SamplingConfig, TransformerConfig
from loong_jax.models.decoding import Storage
from loong_jax.sampling.clip_sampler import ClipSampler, ClipShape
from loong_jax.sampling.continuation import History
from loong_jax.sampling.decode import Decoder, make_decoder
from loong_jax.sampling.rounds import Round, most_kept, plan_rounds
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.vocab import LatentGrid, Vocabulary

_MOST_ROUNDS = 2**24  # the keys of another candidate come after those of so many rounds


@dataclasses.dataclass(frozen=True)
class Request:
    """Videos to sample together."""

    texts: list[list[list[int]]]  # ids of every prompt [segment][video]
    seeds: list[int]  # a prompt and its seed give the same video whatever else is in the batch
    num_frames: int  # of every video, with those of ``start``
    sampling: SamplingConfig
    negative: list[int] | None = None  # ids of the text to stay away from, with guidance; None: the null text
    changes: tuple[int, ...] = ()  # frames from which on the second, third, ... segment's texts are shown
    start: UInt8[np.ndarray, "b t height width 3"] | None = None  # 1 + m x temporal_factor frames to go on from


@dataclasses.dataclass(frozen=True)
class Piece:
    """One latent frame of every video, and the frames that it stands for."""

    ids: Int[np.ndarray, "b h w"]
    frames: UInt8[np.ndarray, "b t height width 3"]


class Generator:
    """A language model and its tokenizer, ready to roll out clips of ``grid``."""

    def __init__(
        self,
        model: TransformerConfig,
        params: Any,
        tokenizer: VideoTokenizer,
        grid: LatentGrid,
        max_text_ids: int,
        mesh: Mesh,
    ):
        """Wrap a model.

        Args:
            model: its architecture.
            params: its parameters.
            tokenizer: the one whose ids it was trained on.
            grid: of the clips that it was trained on.
            max_text_ids: of a prompt that it reads.
            mesh: devices to sample on.
        """
        self.tokenizer, self.grid, self.max_text_ids = tokenizer, grid, max_text_ids
        self._model, self._params, self._mesh = model, params, mesh
        self._decoders: dict[ClipShape, Decoder] = {}
        self._prepared: dict[Storage, Any] = {}  # the parameters, as decoders read them

    def take(self, params: Any) -> None:
        """Go on with other parameters of the same model, and the same compiled functions; None: with none for now."""
        self._params = params
        self._prepared.clear()

    def check(self, request: Request) -> None:
        """Raise a ``ConfigError`` where it is impossible; nothing is compiled for that."""
        self._plan(request)
        self._decoder(request)

    def _plan(self, request: Request) -> Iterator[Round]:
        return _plan(request, self.tokenizer, self.grid)

    def roll_out(self, request: Request, saved: Int[np.ndarray, "b n h w"] | None = None) -> Iterator[Piece]:
        """Sample the videos, a latent frame at a time.

        Args:
            request: what to sample.
            saved: the first ids of the same request, of ``num_whole`` latent frames: what they show is made again, and
                from there on is sampled what would have been.
        """
        clips = functools.cache(lambda: self._clip_sampler(request))
        replay = _Replay(np.zeros((0, 0), np.int32) if saved is None else saved)

        def sample(part: Round, known: np.ndarray | None) -> Iterator[jax.Array | np.ndarray]:
            if replay.num_left:
                return replay(part, known)
            keys = [
                jax.random.fold_in(jax.random.key(seed), part.index + candidate * _MOST_ROUNDS)
                for seed in request.seeds
                for candidate in range(request.sampling.candidates)
            ]
            return clips().sample(request.texts[part.segment], known, keys, part.num_new)

        return _unroll(request, self._plan(request), self.tokenizer, sample)

    def num_latents(self, request: Request) -> int:
        """Latent frames that are sampled."""
        return sum(part.num_new for part in self._plan(request))

    def num_whole(self, request: Request, num_saved: int) -> int:
        """Of so many saved latent frames, those of whole rounds."""
        whole = 0
        for part in self._plan(request):
            if whole + part.num_new > num_saved:
                break
            whole += part.num_new
        return whole

    def _clip_sampler(self, request: Request) -> ClipSampler:
        shape, decoder = self._decoder(request)
        if decoder.storage not in self._prepared:
            self._prepared[decoder.storage] = decoder.prepare(self._params)
        vocabulary = Vocabulary(self._model.num_text_ids, self._model.num_video_ids)
        rope, rules = self._model.rope, request.sampling
        return ClipSampler(shape, decoder, self._prepared[decoder.storage], vocabulary, rope, rules, request.negative)

    def _decoder(self, request: Request) -> tuple[ClipShape, Decoder]:
        """The compiled functions for such requests, which are kept for later ones."""
        batch, candidates = len(request.seeds) * request.sampling.candidates, request.sampling.candidates
        batch += -batch % sharding.num_parts(self._mesh, "batch")  # the devices share the rows evenly
        most = min(most_kept(request.sampling, self.tokenizer.config), self.grid.frames - 1)
        guided, decoding = request.sampling.is_guided, request.sampling.decoding
        shape = ClipShape(self.grid, batch, candidates, guided, self.max_text_ids, most, decoding)
        length = shape.length(self.grid.frames)
        if length > self._model.max_length:
            raise ConfigError(
                f"A prompt of {shape.max_text_ids} ids and a clip of {shape.grid.num_ids} need {length} places, "
                f"but the model was made for {self._model.max_length}: use a shorter clip or prompt."
            )
        if shape not in self._decoders:
            self._decoders[shape] = make_decoder(
                self._model,
                self._mesh,
                batch=batch,
                is_guided=shape.is_guided,
                num_slots=length,
                frame_steps=shape.grid.ids_per_frame,
                decoding=shape.decoding,
                is_ranked=candidates > 1,
            )
        return shape, self._decoders[shape]


def show(
    request: Request, saved: Int[np.ndarray, "b n h w"], tokenizer: VideoTokenizer, grid: LatentGrid
) -> Iterator[Piece]:
    """The videos of saved ids, as many as there are, without the model that sampled them.

    Args:
        request: what was sampled; its texts and seeds are not used.
        saved: ids as they came.
        tokenizer: of the model.
        grid: of the model's clips.
    """
    return _unroll(request, _plan(request, tokenizer, grid), tokenizer, _Replay(saved))


def num_shown(request: Request, num_saved: int, tokenizer: VideoTokenizer, grid: LatentGrid) -> int:
    """Frames of a video of which there are ``start`` and so many latent frames more."""
    shown = 0 if request.start is None else request.start.shape[1]
    for part in _plan(request, tokenizer, grid):
        if not num_saved:
            break
        taken = min(part.num_new, num_saved)
        shown += dataclasses.replace(part, num_new=taken).num_frames(tokenizer.config)
        num_saved -= taken
    return min(shown, request.num_frames)


def _plan(request: Request, tokenizer: VideoTokenizer, grid: LatentGrid) -> Iterator[Round]:
    num_given = 0 if request.start is None else request.start.shape[1]
    return plan_rounds(request.sampling, tokenizer.config, grid.frames, request.num_frames, num_given, request.changes)


def _unroll(request: Request, plan: Iterator[Round], tokenizer: VideoTokenizer, sample: Callable) -> Iterator[Piece]:
    """The latent frames that ``sample(round, known)`` gives for every round, and their frames.

    ``known`` are the ids that a round starts from. The last latent frame's frames are cut to ``num_frames``; where
    there are fewer latent frames than planned, the video ends with them.
    """
    history, decoder, shown = History(request.sampling, tokenizer), _PixelDecoder(tokenizer), 0
    if request.start is not None:
        shown, ids = request.start.shape[1], tokenizer.encode(request.start)
        history.add(ids, request.start)
        decoder.start_from(ids)
    for part in plan:
        known = None
        if part.num_kept:
            known = history.start(part.num_kept)
            if history.is_of_pixels:
                decoder.start_from(known)
        else:  # another scene
            history, decoder = History(request.sampling, tokenizer), _PixelDecoder(tokenizer)
        count = 0
        for piece in decoder.decode(sample(part, known)):
            history.add(piece.ids[:, None], piece.frames)
            yield Piece(piece.ids, piece.frames[:, : request.num_frames - shown])
            shown, count = shown + piece.frames.shape[1], count + 1
        if count < part.num_new:
            return


class _Replay:
    """In place of sampling, ids that there are."""

    def __init__(self, ids: Int[np.ndarray, "b n h w"]):
        self._ids = ids

    @property
    def num_left(self) -> int:
        return self._ids.shape[1]

    def __call__(self, part: Round, known: np.ndarray | None) -> Iterator[Int[np.ndarray, "b h w"]]:
        ids, self._ids = self._ids[:, : part.num_new], self._ids[:, part.num_new :]
        return iter(ids.swapaxes(0, 1))


class _PixelDecoder:
    """Latent frames of one video after another to pixels."""

    def __init__(self, tokenizer: VideoTokenizer):
        self._tokenizer, self._past = tokenizer, None

    def start_from(self, ids: Int[np.ndarray, "b n h w"]) -> None:
        """Begin another video, of which the frames of ``ids`` are not wanted."""
        _, self._past = self._tokenizer.decode_chunk(ids)

    def decode(self, source: Iterator[Int[jax.Array, "b h w"]]) -> Iterator[Piece]:
        """Latent frames and their pixels, which are decoded while the next latent frame is sampled."""
        ahead = next(source, None)
        while ahead is not None:
            ids = np.asarray(ahead)
            # Before the next is asked for: a device works in order.
            frames, self._past = self._tokenizer.start_decoding(ids[:, None], self._past)
            ahead = next(source, None)
            yield Piece(ids, frames())
