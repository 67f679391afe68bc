"""Contract 1: cached decode = full forward, for every path; and how far int8 is from it."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from loong_jax import sharding
from loong_jax.config import TransformerConfig
from loong_jax.models import decoding, kv_cache, transformer
from loong_jax.models.cached_attention import cached_attention
from loong_jax.models.decoding import Storage
from loong_jax.models.dense_attention import dense_attention
from loong_jax.models.kv_cache import KVCache
from loong_jax.models.quantization import dequantized, quantized

CONFIG = TransformerConfig(
    num_layers=2, model_dim=64, num_heads=16, num_kv_heads=8, mlp_dim=64, num_text_ids=50, num_video_ids=64
)
MESHES = [{"data": 1}, {"data": 8}, {"fsdp": 8}, {"tensor": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]
PLAIN = Storage(is_int8=False, is_transposed=False)
INT8 = Storage(is_int8=True, is_transposed=False)


@cache
def sharp_params():
    """Weights four times as large as at the start, so that attention is far from uniform."""
    return jax.tree.map(lambda x: 4 * x, transformer.init_params(CONFIG, jax.random.key(0)))


def model_of(config: TransformerConfig, params) -> transformer.Transformer:
    return nnx.merge(transformer.abstract_params(config)[0], params)


def assert_trees_close(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def cached_and_full_logits(
    config: TransformerConfig, params, side: str, storage: Storage = PLAIN, cache_dtype=None, is_cut=False
) -> tuple[np.ndarray, np.ndarray]:
    """Logits after each of 8 rows' prompts (3 to 6 ids, padded to 6 on ``side``) and 5 more ids, both ways."""
    rng, lengths, slots, steps = np.random.default_rng(2), np.array([6, 5, 4, 3, 6, 3, 5, 4]), 6, 5
    rows = len(lengths)
    sequences = rng.integers(0, config.vocab_size, (rows, slots + steps), dtype=np.int32)
    tokens, positions = np.zeros((rows, slots), np.int32), np.zeros((rows, slots), np.int32)
    valid = np.zeros((rows, slots), bool)
    for row, length in enumerate(lengths):
        place = slice(slots - length, slots) if side == "left" else slice(0, length)
        tokens[row, place], positions[row, place] = sequences[row, :length], np.arange(length)
        valid[row, place] = True
    last = np.full(rows, slots - 1) if side == "left" else lengths - 1

    @jax.jit
    def extend(params, *arguments):
        return decoding.extend(params, config, *arguments)

    prepare = jax.jit(lambda params: decoding.decoding_params(params, config, 0, config.vocab_size, storage))
    made, scores = prepare(params), jax.jit(decoding.logits)
    empty = KVCache.zeros(config, rows, slots + steps, cache_dtype or transformer.compute_dtype(config), is_cut)
    hidden, store = extend(made, tokens, places_of(config, positions), valid, empty, 0)
    found, real = [scores(made, hidden[np.arange(rows), last])], np.ones((rows, 1), bool)
    for step in range(steps):
        following = lengths + step
        token = sequences[np.arange(rows), following]
        place = places_of(config, following[:, None])
        hidden, store = extend(made, token[:, None], place, real, store, slots + step)
        found.append(scores(made, hidden[:, 0]))

    places = np.tile(np.arange(slots + steps, dtype=np.int32), (rows, 1))
    full = jax.jit(lambda params, *arguments: model_of(config, params).hidden(*arguments))
    logits = jax.jit(lambda params, hidden: model_of(config, params).logits(hidden))
    everything = logits(params, full(params, sequences, places_of(config, places), np.ones_like(places)))
    wanted = lengths[:, None] - 1 + np.arange(steps + 1)
    return np.stack(found, 1), np.asarray(everything)[np.arange(rows)[:, None], wanted]


def places_of(config, positions: np.ndarray) -> np.ndarray:
    """The same places, with three coordinates for a model that wants them."""
    return positions if config.rope == "1d" else np.stack([positions, positions // 2, positions % 3], axis=-1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_cached_decode_equals_full_forward_with_places_in_space_and_normalized_heads(side):
    config = dataclasses.replace(CONFIG, rope="3d", qk_norm=True, compute_dtype="float32")
    params = jax.tree.map(lambda x: 4 * x, transformer.init_params(config, jax.random.key(0)))
    found, expected = cached_and_full_logits(config, params, side)
    assert np.abs(expected).max() > 1
    assert_trees_close(found, expected, 1e-5)
    _, plain = cached_and_full_logits(dataclasses.replace(config, rope="1d"), params, side)
    assert np.abs(plain - expected).max() > 0.1


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("num_kv_heads", [2, 8, 16])
@pytest.mark.parametrize("is_cut", [False, True])
def test_cached_decode_equals_full_forward(side, num_kv_heads, is_cut, monkeypatch):
    monkeypatch.setattr(kv_cache, "_LEAST_BLOCK", 4)  # 11 slots are three blocks
    storage = Storage(is_int8=False, is_transposed=side == "left")
    found, expected = cached_and_full_logits(*sharp_model(num_kv_heads, "float32"), side, storage, is_cut=is_cut)
    assert np.abs(expected).max() > 1
    assert_trees_close(found, expected, 1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("num_kv_heads", [2, 8, 16])
def test_cached_decode_in_bfloat16_is_as_close_to_float32_as_the_full_forward(side, num_kv_heads):
    """They round at different places: each is compared with what neither rounds."""
    _, exact = cached_and_full_logits(*sharp_model(num_kv_heads, "float32"), side)
    errors = [
        np.sqrt(np.square(logits - exact).mean()) / np.abs(exact).max()
        for logits in cached_and_full_logits(*sharp_model(num_kv_heads, "bfloat16"), side)
    ]
    assert 1e-4 < errors[0] < 1.2 * errors[1] < 0.02


def sharp_model(num_kv_heads, dtype):
    config = dataclasses.replace(CONFIG, compute_dtype=dtype, num_kv_heads=num_kv_heads)
    return config, jax.tree.map(lambda x: 4 * x, transformer.init_params(config, jax.random.key(0)))


@pytest.mark.parametrize("sizes", MESHES[:5], ids=str)
def test_cached_decode_equals_full_forward_on_a_mesh(sizes, make_mesh):
    mesh = make_mesh(**sizes)
    shardings = sharding.tree_shardings(mesh, sharp_params(), transformer.logical_axes(CONFIG))
    _, expected = cached_and_full_logits(CONFIG, sharp_params(), "left")
    with jax.set_mesh(mesh):
        found, full = cached_and_full_logits(CONFIG, jax.device_put(sharp_params(), shardings), "left")
    assert_trees_close(found, expected, 1e-5)
    assert_trees_close(full, expected, 1e-5)


def error_of(storage: Storage, cache_dtype=None) -> float:
    """Root mean square of the logits' error, as a share of that of the logits."""
    params = transformer.init_params(CONFIG, jax.random.key(0))
    found, expected = cached_and_full_logits(CONFIG, params, "left", storage, cache_dtype)
    return np.sqrt(np.square(found - expected).mean() / np.square(expected).mean())


def test_int8_weights_and_an_int8_cache_are_close():
    """Each matrix rounds to a 254th of its output's largest weight, each key to one of its own largest number."""
    errors = {name: error_of(*what) for name, what in {"weights": (INT8,), "cache": (PLAIN, jnp.int8)}.items()}
    errors["both"] = error_of(Storage(is_int8=True, is_transposed=True), jnp.int8)
    assert all(1e-5 < error < 0.03 for error in errors.values()), errors


def test_an_int8_model_on_a_mesh_is_that_of_one_device(make_mesh):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    expected, _ = cached_and_full_logits(CONFIG, sharp_params(), "left", INT8, jnp.int8)
    placed = jax.device_put(
        sharp_params(), sharding.tree_shardings(mesh, sharp_params(), transformer.logical_axes(CONFIG))
    )
    with jax.set_mesh(mesh):
        found, _ = cached_and_full_logits(CONFIG, placed, "left", INT8, jnp.int8)
    assert_trees_close(found, expected, 0.02)  # a number between two steps may be rounded to either


def test_a_group_is_rounded_to_254_steps_and_zeros_stay_zeros():
    x = np.random.default_rng(0).normal(0, 3, (5, 7)).astype(np.float32)
    x[2] = 0
    values, scales = quantized(jnp.asarray(x), axis=1)
    assert values.dtype == jnp.int8 and scales.shape == (5, 1) and scales[2] == 1
    expected = np.abs(x.astype(np.float64)).max(axis=1, keepdims=True) / 127
    np.testing.assert_allclose(np.asarray(scales)[[0, 1, 3, 4]], expected[[0, 1, 3, 4]], rtol=1e-6)
    found = np.asarray(dequantized(values, scales, jnp.float32))
    assert (np.abs(found - x) <= expected / 2 * 1.0001).all()
    np.testing.assert_array_equal(found[2], 0)


def test_a_key_of_zeros_divides_nothing():
    """As where a normalization's scale is zero: every slot counts the same."""
    store = KVCache.zeros(CONFIG, 2, 3, jnp.int8).layers[0]
    value = jax.random.normal(jax.random.key(0), (2, 3, 8, 4))
    store = store.write(0, jnp.zeros_like(value), value)
    found = cached_attention(jnp.ones((2, 1, 16, 4)), store, jnp.ones((2, 1, 3), bool), 3)
    np.testing.assert_allclose(found[:, 0, ::2], value.mean(axis=1), atol=0.02)


@pytest.mark.parametrize("is_cut", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_a_long_cache_is_read_in_blocks_up_to_what_is_filled(dtype, is_cut):
    """1,500 slots, of which any number is filled; blocks of 94 behind it are never looked at."""
    keys, size = jax.random.split(jax.random.key(1), 3), 94
    query = jax.random.normal(keys[0], (2, 1, 16, 4))
    key, value = (jax.random.normal(k, (2, 1500, 8, 4)) for k in keys[1:])
    empty = KVCache.zeros(CONFIG, 2, 1500, dtype, is_cut).layers[0]

    @jax.jit
    def attend(key, value, allowed, filled):
        return cached_attention(query, empty.write(0, key, value), allowed, filled)

    for filled in (1, 94, 95, 700, 1500):
        allowed = (jnp.arange(1500) < filled)[None, None].repeat(2, axis=0)
        is_read = (jnp.arange(1500) < -(-filled // size) * size)[None, :, None, None]
        stored = (jnp.where(is_read, part, jnp.nan) for part in (key, value))
        expected = dense_attention(query, key, value, allowed)
        found = attend(*stored, allowed, filled)
        np.testing.assert_allclose(found, expected, atol=1e-5 if dtype == jnp.float32 else 0.05)


def test_decoding_params_are_joined_cut_and_in_the_compute_dtype():
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    made = decoding.decoding_params(sharp_params(), config, 50, 114, PLAIN)
    first = made["layers"][0]
    shapes = {name: part.values.shape for name, part in first.items() if not name.endswith("norm")}
    assert shapes == {"heads": (64, 8 * 4 * 4), "output": (64, 64), "gate_up": (64, 128), "down": (64, 64)}
    assert {x.dtype for name in shapes for x in jax.tree.leaves(first[name])} == {jnp.dtype(jnp.bfloat16)}
    hidden = jax.random.normal(jax.random.key(3), (2, 64), jnp.bfloat16)
    expected = model_of(config, sharp_params()).logits(hidden)[:, 50:114]
    np.testing.assert_array_equal(decoding.logits(made, hidden), expected)
