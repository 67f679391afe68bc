"""Writes lpips_parity.npz: LPIPS of random pictures by PyTorch, with the random weights of ``random_weights``.

    pip install -e ".[parity]" && python tests/references/make_lpips_parity.py

The weights are made from a seed by NumPy, so that only distances and gradients need to be stored.
"""

from pathlib import Path

import numpy as np

from loong_jax.tokenizer.perceptual import LpipsWeights, lpips_shapes

FILE = Path(__file__).with_name("lpips_parity.npz")
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_LAST_OF_LEVEL = (1, 3, 6, 9, 12)


def random_weights(seed: int = 0) -> LpipsWeights:
    """VGG16 with kernels that keep the size of what goes through them, and channel weights in [0, 1]."""
    rng, shapes = np.random.default_rng(seed), lpips_shapes()
    return LpipsWeights(
        tuple(rng.normal(size=x.shape, scale=(2 / np.prod(x.shape[:3])) ** 0.5).astype(np.float32) for x in shapes[0]),
        tuple(rng.normal(size=x.shape, scale=0.1).astype(np.float32) for x in shapes[1]),
        tuple(rng.uniform(size=x.shape).astype(np.float32) for x in shapes[2]),
    )


def random_pictures(seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Two times three pictures of 32x40 pixels in [-1, 1]; the last pair is equal but for a little noise."""
    rng = np.random.default_rng(seed)
    a, b = (rng.uniform(-1, 1, (3, 32, 40, 3)).astype(np.float32) for _ in range(2))
    b[2] = np.clip(a[2] + 0.05 * b[2], -1, 1)
    return a, b


def torch_lpips(weights: LpipsWeights, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances [n] and the gradient of their sum at ``a``, as the package lpips computes them."""
    import torch
    from torch.nn import functional

    def features(x):
        x = (x - torch.tensor(_SHIFT).view(1, 3, 1, 1)) / torch.tensor(_SCALE).view(1, 3, 1, 1)
        for index, (kernel, bias) in enumerate(zip(weights.kernels, weights.biases, strict=True)):
            kernel, bias = torch.tensor(np.array(kernel.transpose(3, 2, 0, 1))), torch.tensor(np.array(bias))
            x = functional.relu(functional.conv2d(x, kernel, bias, padding=1))
            if index in _LAST_OF_LEVEL:
                yield x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
                x = functional.max_pool2d(x, 2)

    first = torch.tensor(a.transpose(0, 3, 1, 2), requires_grad=True)
    second = torch.tensor(b.transpose(0, 3, 1, 2))
    distance = 0
    for x, y, channels in zip(features(first), features(second), weights.channel_weights, strict=True):
        head = torch.tensor(np.array(channels)).view(1, -1, 1, 1)
        distance = distance + ((x - y).square() * head).sum(dim=1).mean(dim=(1, 2))
    distance.sum().backward()
    return distance.detach().numpy(), first.grad.numpy().transpose(0, 2, 3, 1)


if __name__ == "__main__":
    distances, gradient = torch_lpips(random_weights(), *random_pictures())
    np.savez_compressed(FILE, distances=distances, gradient=gradient)
    print(f"wrote {FILE}: {distances}")
