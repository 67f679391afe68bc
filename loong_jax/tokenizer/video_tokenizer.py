"""The public face of the tokenizer: videos of pixels to ids and back, in chunks of constant memory."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from loong_jax import checkpoint
from loong_jax.config import TokenizerConfig, TokenizerJob
from loong_jax.config_dict import from_config_dict
from loong_jax.tokenizer.autoencoder import abstract_autoencoder, init_params

# Latent frames processed at once after the first chunk; a video that fits in the first chunk is done whole.
_CHUNK = 16
_ROWS = 16  # videos processed at once


class VideoTokenizer:
    """Turns uint8 videos [batch?, frames, height, width, 3] into ids [batch?, latent_frames, h, w] and back.

    The first frame is its own latent frame, each further one stands for ``temporal_factor`` frames, so that an image
    is a video of one frame.
    """

    def __init__(self, config: TokenizerConfig, params: Any):
        """Wrap parameters, as ``autoencoder.init_params`` gives them."""
        self.config = config
        self.params = params
        graphdef, _ = abstract_autoencoder(config)
        self._encode = jax.jit(lambda params, video, past: nnx.merge(graphdef, params).encode(_to_float(video), past))
        self._decode = jax.jit(lambda params, ids, past: _to_uint8(nnx.merge(graphdef, params).decode(ids, past)))

    @staticmethod
    def untrained(config: TokenizerConfig, seed: int = 0) -> "VideoTokenizer":
        """A tokenizer with random parameters, for debugging."""
        return VideoTokenizer(config, jax.jit(lambda key: init_params(config, key))(jax.random.key(seed)))

    @staticmethod
    def load(workdir: str | Path) -> "VideoTokenizer":
        """The tokenizer of the newest checkpoint in the workdir of a tokenizer training.

        Raises:
            ValueError: there is none.
        """
        job = from_config_dict(checkpoint.load_meta(workdir)["config"])
        if not isinstance(job, TokenizerJob):
            raise ValueError(
                f"{workdir} holds a training of task {job.task!r}: give the workdir of a tokenizer training."
            )
        _, abstract = abstract_autoencoder(job.tokenizer)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), abstract)
        return VideoTokenizer(job.tokenizer, checkpoint.load_parts(workdir, {"params": abstract})["params"])

    @property
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

    def encode(self, video: np.ndarray) -> np.ndarray:
        """Ids, int32 in [0, num_codes), of a uint8 video.

        Raises:
            ValueError: the shape, dtype, frame count or size is not one that the tokenizer can take.
        """
        video, batched = _check_video(self.config, video)
        ids = self._in_chunks(self._encode, video, 1 + _CHUNK * self.config.temporal_factor)
        return ids if batched else ids[0]

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """The uint8 video of ids; ``1 + (latent_frames - 1) * temporal_factor`` frames.

        Raises:
            ValueError: the shape, dtype or range of ids is not one that the tokenizer makes.
        """
        ids, batched = _check_ids(self.config, ids)
        video = self._in_chunks(self._decode, ids, 1 + _CHUNK)
        return video if batched else video[0]

    def _in_chunks(self, function, videos: np.ndarray, first: int) -> np.ndarray:
        """Apply ``function`` to some rows and frames at a time: memory grows with neither batch nor length."""
        starts = range(0, len(videos), _ROWS)
        return np.concatenate([self._rows_in_chunks(function, videos[row : row + _ROWS], first) for row in starts])

    def _rows_in_chunks(self, function, frames: np.ndarray, first: int) -> np.ndarray:
        done, past = function(self.params, frames[:, :first], None)
        outputs = [np.asarray(done)]
        for start in range(first, frames.shape[1], first - 1):
            done, past = function(self.params, frames[:, start : start + first - 1], past)
            outputs.append(np.asarray(done))
        return np.concatenate(outputs, axis=1)


def _to_float(video):
    return video.astype(jnp.float32) / 127.5 - 1


def _to_uint8(decoded):
    video, past = decoded
    return jnp.clip(jnp.round((video + 1) * 127.5), 0, 255).astype(jnp.uint8), past


def _check_video(config: TokenizerConfig, video: np.ndarray) -> tuple[np.ndarray, bool]:
    video = np.asarray(video)
    if video.dtype != np.uint8 or video.ndim not in (4, 5) or video.shape[-1] != 3 or 0 in video.shape:
        raise ValueError(
            f"A video must be uint8 [batch?, frames, height, width, 3] and not empty; got {video.dtype} {video.shape}."
        )
    frames, height, width = video.shape[-4:-1]
    if (frames - 1) % config.temporal_factor:
        raise ValueError(
            f"A video must have 1 + a multiple of {config.temporal_factor} frames; got {frames}: "
            f"cut it to {frames - (frames - 1) % config.temporal_factor}."
        )
    if height % config.spatial_factor or width % config.spatial_factor:
        raise ValueError(
            f"Height and width must be multiples of {config.spatial_factor}; got {height}x{width}: "
            "resize the video (read_video takes size=...)."
        )
    return (video, True) if video.ndim == 5 else (video[None], False)


def _check_ids(config: TokenizerConfig, ids: np.ndarray) -> tuple[np.ndarray, bool]:
    ids = np.asarray(ids)
    if not np.issubdtype(ids.dtype, np.integer) or ids.ndim not in (3, 4) or 0 in ids.shape:
        raise ValueError(
            f"Ids must be integers [batch?, latent_frames, h, w] and not empty; got {ids.dtype} {ids.shape}."
        )
    num_codes = config.quantizer.num_codes
    if ids.min() < 0 or ids.max() >= num_codes:
        raise ValueError(f"Ids must lie in [0, {num_codes}); got {ids.min()} to {ids.max()}.")
    ids = ids.astype(np.int32)
    return (ids, True) if ids.ndim == 4 else (ids[None], False)
