"""The public face of the tokenizer: videos of any length and size to ids and back, in constant memory."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int, UInt8

from loong_jax import checkpoint
from loong_jax.config import TokenizerConfig, TokenizerJob
from loong_jax.config_dict import build, from_config_dict, to_json_dict
from loong_jax.tokenizer.autoencoder import abstract_autoencoder, init_params
from loong_jax.tokenizer.input_checks import check_ids, check_video
from loong_jax.tokenizer.tiling import Tiling
from loong_jax.weights_file import load_tree, rounded, save_tree

# Latent frames and videos processed at once, where frames are small: for larger ones, fewer.
_CHUNK, _ROWS = 16, 16
_PIXELS = _ROWS * (1 + 4 * _CHUNK) * 32 * 32
_SETTINGS, _WEIGHTS = "tokenizer.json", "tokenizer.safetensors"  # of a saved one


class VideoTokenizer:
    """Turns videos [batch?, frames, height, width, channels] into ids [batch?, latent_frames, h, w] and back.

    The first frame is its own latent frame, each further one stands for ``temporal_factor`` frames, so that an image
    is a video of one frame. Long videos go through in chunks, with the ids and pixels of the whole; frames larger than
    those of the training in overlapping tiles.
    """

    def __init__(self, config: TokenizerConfig, params: Any, frame_size: int | None = None):
        """Wrap parameters, as ``autoencoder.init_params`` gives them.

        Args:
            config: of the architecture.
            params: the parameters.
            frame_size: height and width trained on; larger frames are cut into tiles of it. None: never.
        """
        self.config = config
        self.params = params
        self.frame_size = frame_size
        graphdef, _ = abstract_autoencoder(config)
        self._encode = jax.jit(lambda params, video, past: nnx.merge(graphdef, params).encode(_to_float(video), past))
        self._decode = jax.jit(lambda params, ids, past: _to_uint8(nnx.merge(graphdef, params).decode(ids, past)))

    @staticmethod
    def untrained(config: TokenizerConfig, seed: int = 0) -> "VideoTokenizer":
        """A tokenizer with random parameters, for debugging."""
        return VideoTokenizer(config, jax.jit(lambda key: init_params(config, key))(jax.random.key(seed)))

    @staticmethod
    def load(folder: str | Path) -> "VideoTokenizer":
        """The tokenizer of the newest checkpoint in the workdir of a tokenizer training, or one that was saved.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        folder = Path(folder)
        return _read_saved(folder) if (folder / _SETTINGS).exists() else _read_training(folder)

    def save(self, folder: str | Path, decoder_dtype: str = "float32") -> str:
        """Write ``tokenizer.json`` and ``tokenizer.safetensors``, float32, from which ``load`` makes the same.

        Its decoder, which no id depends on, is rounded to ``decoder_dtype``, one of ``weights_file.DTYPES``. Returns
        the fingerprint of what ``load`` makes.
        """
        decoder = rounded(self.params["decoder"], decoder_dtype)
        kept = VideoTokenizer(self.config, self.params | {"decoder": rounded(decoder, "float32")}, self.frame_size)
        save_tree(Path(folder) / _WEIGHTS, self.params | {"decoder": decoder})
        settings = {"tokenizer": to_json_dict(self.config), "frame_size": self.frame_size}
        text = json.dumps(settings | {"fingerprint": kept.fingerprint}, indent=1)
        (Path(folder) / _SETTINGS).write_text(text + "\n", encoding="utf-8")
        return kept.fingerprint

    def on(self, device: jax.Device) -> "VideoTokenizer":
        """This tokenizer with its parameters on ``device``, where it then encodes and decodes."""
        return VideoTokenizer(self.config, jax.device_put(self.params, device), self.frame_size)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the config and parameters: ids mean the same exactly where it is the same."""
        digest = hashlib.sha256(repr(self.config).encode())
        for path, value in sorted(jax.tree_util.tree_leaves_with_path(self.params), key=lambda item: str(item[0])):
            digest.update(f"{path}{value.shape}{value.dtype}".encode())
            digest.update(np.asarray(value).tobytes())
        return digest.hexdigest()[:16]

    @property
    def codebook(self) -> jax.Array:
        """The code vectors, float32 [codes, dim]."""
        return self.params["quantizer"]["codebook"]

    def encode(self, video: np.ndarray) -> Int[np.ndarray, "*b t h w"]:
        """Ids, int32 in [0, num_codes), of a video.

        Args:
            video: [batch?, frames, height, width, channels], uint8, or float in [0, 1]. One channel is gray, four are
                color and alpha, which is put over black. After the last frame it is repeated until the frames are 1 +
                a multiple of ``temporal_factor``; ``decode(ids, num_frames)`` cuts that off again.

        Raises:
            ValueError: the shape, dtype, values or size are not such that the tokenizer can take.
        """
        video, is_batch = check_video(self.config, video)
        _, latent_frames = self._at_once(*video.shape[2:4])
        past, ids = None, []
        for piece in _pieces(video, latent_frames * self.config.temporal_factor):
            done, past = self.encode_chunk(piece, past)
            ids.append(done)
        ids = np.concatenate(ids, axis=1)
        return ids if is_batch else ids[0]

    def decode(self, ids: np.ndarray, num_frames: int | None = None) -> UInt8[np.ndarray, "*b t h w 3"]:
        """The uint8 video of ids: 1 + (latent_frames - 1) x temporal_factor frames, or the first ``num_frames``.

        Raises:
            ValueError: the shape, dtype or range of ids is not one that the tokenizer makes, or the frames are fewer.
        """
        ids, is_batch = check_ids(self.config, ids)
        available = self.config.pixel_frames(ids.shape[1])
        if num_frames is not None and not 1 <= num_frames <= available:
            raise ValueError(f"{ids.shape[1]} latent frames are 1 to {available} frames; num_frames is {num_frames}.")
        _, latent_frames = self._at_once(*(cells * self.config.spatial_factor for cells in ids.shape[2:]))
        past, frames = None, []
        for piece in _pieces(ids, latent_frames):
            done, past = self.decode_chunk(piece, past)
            frames.append(done)
        video = np.concatenate(frames, axis=1)[:, :num_frames]
        return video if is_batch else video[0]

    def encode_stream(self, pieces: Iterable[np.ndarray]) -> Iterator[Int[np.ndarray, "*b t h w"]]:
        """Ids of a video that arrives in pieces of any number of frames, as soon as there are frames for them.

        The ids are those of ``encode`` on the whole. Memory depends on the largest piece and not on the video.
        """
        is_batch, held = True, None
        past, factor = None, self.config.temporal_factor
        for piece in pieces:
            piece, is_batch = check_video(self.config, piece, pad=False)
            held = piece if held is None else _joined(held, piece)
            ready = held.shape[1] - (held.shape[1] - (past is None)) % factor
            if ready:
                ids, past = self.encode_chunk(held[:, :ready], past)
                held = held[:, ready:] if ready < held.shape[1] else held[:, :0]
                yield ids if is_batch else ids[0]
        if held is not None and held.shape[1]:
            ids, _ = self.encode_chunk(held[:, np.minimum(np.arange(factor), held.shape[1] - 1)], past)
            yield ids if is_batch else ids[0]

    def decode_stream(self, pieces: Iterable[np.ndarray]) -> Iterator[UInt8[np.ndarray, "*b t h w 3"]]:
        """The frames of ids that arrive in pieces of any number of latent frames, each piece's at once.

        The frames are those of ``decode`` on the whole. Memory depends on the largest piece and not on the video.
        """
        past = None
        for piece in pieces:
            ids, is_batch = check_ids(self.config, piece)
            frames, past = self.decode_chunk(ids, past)
            yield frames if is_batch else frames[0]

    def encode_chunk(self, video: UInt8[np.ndarray, "b t h w 3"], past: Any = None) -> tuple[np.ndarray, Any]:
        """Ids of the next frames of a video, and what to remember of them.

        Args:
            video: 1 + m x temporal_factor frames at the start of a video, where ``past`` is None; later without the 1.
            past: what the call on the frames before returned. Its shapes do not depend on their number.
        """
        factor = self.config.spatial_factor
        tiling = self._tiling(video.shape[2] // factor, video.shape[3] // factor)
        tiles, past = self._by_rows(self._encode, tiling.cut(video, factor), past, 1)
        return tiling.join_ids(_fetched(tiles)), past

    def decode_chunk(self, ids: Int[np.ndarray, "b t h w"], past: Any = None) -> tuple[np.ndarray, Any]:
        """uint8 frames of the next ids of a video, and what to remember of them; for ``past`` see ``encode_chunk``.

        So the last frames of a video, say to encode them again, are decoded without those before.
        """
        frames, past = self.start_decoding(ids, past)
        return frames(), past

    def start_decoding(self, ids: Int[np.ndarray, "b t h w"], past: Any = None) -> tuple[Callable[[], np.ndarray], Any]:
        """``decode_chunk`` that does not wait: the frames are there when they are called for."""
        tiling = self._tiling(*ids.shape[2:])
        factor = self.config.spatial_factor
        tiles, past = self._by_rows(self._decode, tiling.cut(ids, 1), past, factor)
        return lambda: tiling.join_frames(_fetched(tiles), factor), past

    def _tiling(self, height: int, width: int) -> Tiling:
        size = max(height, width) if self.frame_size is None else self.config.latent_size(self.frame_size)
        return Tiling.create(height, width, size)

    def _at_once(self, height: int, width: int) -> tuple[int, int]:
        """How many videos or tiles, and how many latent frames of them, to process at once."""
        tile = self.frame_size or max(height, width)
        pixels = min(height, tile) * min(width, tile)
        factor = self.config.temporal_factor
        rows = _PIXELS // ((1 + factor * _CHUNK) * pixels)
        return max(1, min(_ROWS, rows)), max(1, min(_CHUNK, _PIXELS // (factor * pixels)))

    def _by_rows(self, function, rows: np.ndarray, past: Any, scale: int) -> tuple[list, Any]:
        """Apply ``function`` to some videos or tiles at a time; ``scale`` x their height and width are pixels.

        What it returns of the last ones is still being computed.
        """
        together, _ = self._at_once(rows.shape[2] * scale, rows.shape[3] * scale)
        outputs, pasts = [], []
        for index, start in enumerate(range(0, len(rows), together)):
            row_past = None if past is None else past[index]
            outputs = [np.asarray(done) for done in outputs]
            done, row_past = function(self.params, rows[start : start + together], row_past)
            outputs.append(done)
            pasts.append(row_past)
        return outputs, pasts


def _read_training(workdir: Path) -> VideoTokenizer:
    job = load_job(workdir)
    params = checkpoint.load_weights(workdir, _on_a_device(job.tokenizer), job.ema_decay)
    return VideoTokenizer(job.tokenizer, params, job.data.frame_size)


def _read_saved(folder: Path) -> VideoTokenizer:
    path = folder / _SETTINGS
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        config = build(TokenizerConfig, settings["tokenizer"], "tokenizer")
        frame_size, fingerprint = settings["frame_size"], settings["fingerprint"]
        if frame_size is not None:
            config.latent_size(frame_size)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not describe a tokenizer ({error!r}): copy or export it again.") from None
    tokenizer = VideoTokenizer(config, load_tree(folder / _WEIGHTS, _on_a_device(config)), frame_size)
    if tokenizer.fingerprint != fingerprint:
        raise ValueError(
            f"{folder / _WEIGHTS} holds tokenizer {tokenizer.fingerprint}, and {path} is of {fingerprint}: they do not "
            "belong together, or one is damaged; copy or export them again."
        )
    return tokenizer


def _on_a_device(config: TokenizerConfig) -> Any:
    """Shapes of the parameters, on the first device."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    _, abstract = abstract_autoencoder(config)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), abstract)


def load_job(workdir: str | Path) -> TokenizerJob:
    """The settings of the tokenizer training in ``workdir``.

    Raises:
        ValueError: there is none.
    """
    job = from_config_dict(checkpoint.load_meta(workdir)["config"])
    if not isinstance(job, TokenizerJob):
        raise ValueError(f"{workdir} holds a training of task {job.task!r}: give the workdir of a tokenizer training.")
    return job


def _pieces(frames: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """The first frame and ``length`` more, then ``length`` at a time."""
    yield frames[:, : 1 + length]
    for start in range(1 + length, frames.shape[1], length):
        yield frames[:, start : start + length]


def _fetched(outputs: list) -> np.ndarray:
    return np.concatenate([np.asarray(done) for done in outputs])


def _joined(held: np.ndarray, piece: np.ndarray) -> np.ndarray:
    if (held.shape[0], *held.shape[2:]) != (piece.shape[0], *piece.shape[2:]):
        raise ValueError(
            f"All pieces of a video have one batch, height and width: got {piece.shape} after {held.shape}."
        )
    return np.concatenate([held, piece], axis=1)


def _to_float(video):
    return video.astype(jnp.float32) / 127.5 - 1


def _to_uint8(decoded):
    video, past = decoded
    return jnp.clip(jnp.round((video + 1) * 127.5), 0, 255).astype(jnp.uint8), past
