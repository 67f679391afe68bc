"""Normalization, rotary positions, gated MLP and the attention of decoding, against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loong_jax.config import TransformerConfig
from loong_jax.models.cached_attention import cached_attention
from loong_jax.models.dense_attention import dense_attention
from loong_jax.models.kv_cache import CachePiece, KVCache, LayerCache, block_slots
from loong_jax.models.layers import rms_norm, rotate, rotation, swiglu

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def test_rms_norm_is_computed_in_float32():
    x, scale = 100 * normal(2, 3, 16), normal(16)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * scale
    np.testing.assert_allclose(rms_norm(jnp.asarray(x), jnp.asarray(scale), 1e-5), expected, rtol=1e-5, atol=1e-6)
    low = rms_norm(jnp.asarray(x, jnp.bfloat16), jnp.asarray(scale), 1e-5)
    assert low.dtype == jnp.bfloat16
    exact_input = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)
    expected = exact_input / np.sqrt((exact_input**2).mean(-1, keepdims=True) + 1e-5) * scale
    np.testing.assert_allclose(np.asarray(low, np.float64), expected, rtol=2**-8)  # one rounding, at the end


def test_rope_turns_pairs_of_halves_and_stays_exact_at_the_last_position():
    x, positions, theta = normal(2, 3, 2, 8), np.array([[0, 1, 2], [7, 1000, 4607]], np.int32), 10000.0
    expected = np.empty(x.shape)
    for index in range(4):
        angle = positions[..., None] * theta ** (-index / 4)
        turned = (x[..., index].astype(np.float64) + 1j * x[..., index + 4]) * np.exp(1j * angle)
        expected[..., index], expected[..., index + 4] = turned.real, turned.imag
    turned = rotate(jnp.asarray(x), rotation(jnp.asarray(positions), 8, theta))
    np.testing.assert_allclose(turned, expected, atol=2e-3)
    np.testing.assert_allclose(turned[0], expected[0], atol=1e-6)


def test_swiglu():
    x, gate, up, down = normal(2, 3, 8), normal(8, 12), normal(8, 12), normal(12, 8)
    wide = x.astype(np.float64)
    expected = ((wide @ gate) / (1 + np.exp(-(wide @ gate))) * (wide @ up)) @ down
    np.testing.assert_allclose(swiglu(*map(jnp.asarray, (x, gate, up, down))), expected, rtol=1e-4, atol=1e-4)


def test_gradients_of_swiglu():
    x, gate, up, down, of_out = normal(2, 3, 8), normal(8, 12), normal(8, 12), normal(12, 8), normal(2, 3, 8)
    found = jax.vjp(swiglu, *map(jnp.asarray, (x, gate, up, down)))[1](jnp.asarray(of_out))
    rows, of_rows = x.reshape(-1, 8).astype(np.float64), of_out.reshape(-1, 8).astype(np.float64)
    gated, raised = rows @ gate, rows @ up
    share = 1 / (1 + np.exp(-gated))
    of_product = of_rows @ down.T
    of_gated = of_product * raised * share * (1 + gated * (1 - share))
    of_raised = of_product * gated * share
    of_x = (of_gated @ gate.T + of_raised @ up.T).reshape(x.shape)
    expected = of_x, rows.T @ of_gated, rows.T @ of_raised, (gated * share * raised).T @ of_rows
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_cut", [False, True])
@pytest.mark.parametrize(("num_kv_heads", "slots", "read"), [(1, 300, 3 * 64), (4, 300, 3 * 64), (4, 1500, 2 * 94)])
def test_cached_attention_reads_the_filled_slots_and_no_others(num_kv_heads, slots, read, is_cut):
    """Slots past the blocks with filled ones hold NaN: one read there would be seen. Long caches have larger blocks."""
    filled = 130
    keys, values = (np.full((2, num_kv_heads, slots, 8), np.nan, np.float32) for _ in range(2))
    for part in (keys, values):
        part[:, :, :read] = normal(2, num_kv_heads, read, 8)
    query, mask = normal(2, 5, 4, 8), RNG.random((2, 5, slots)) < 0.6
    mask[..., 0], mask[..., filled:] = True, False
    ends = np.arange(block_slots(slots), slots, block_slots(slots)) if is_cut else []
    parts = (np.split(part, ends, axis=2) for part in (keys, values))
    cache = LayerCache([CachePiece(*map(jnp.asarray, pair)) for pair in zip(*parts, strict=True)])
    found = jax.jit(cached_attention)(jnp.asarray(query), cache, jnp.asarray(mask), filled)
    part = [x[:, :, :filled].swapaxes(1, 2) for x in (keys, values)]
    expected = dense_attention(*map(jnp.asarray, (query, *part, mask[..., :filled])))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
@pytest.mark.parametrize(("slot", "count"), [(0, 150), (0, 1), (63, 1), (64, 1), (62, 5), (145, 5), (0, 64), (10, 130)])
def test_a_cache_in_pieces_holds_what_one_array_holds(slot, count, dtype):
    """Wherever it is written: within a piece, across the borders of pieces, or all of it."""
    config = TransformerConfig(num_layers=1, model_dim=16, num_heads=2, num_kv_heads=2, mlp_dim=8)
    key, value = (jnp.asarray(normal(3, count, 2, 8)) for _ in range(2))
    before = [jnp.asarray(normal(3, 150, 2, 8)) for _ in range(2)]
    caches = [KVCache.zeros(config, 3, 150, dtype, is_cut).layers[0].write(0, *before) for is_cut in (False, True)]
    write = jax.jit(lambda cache, slot: cache.write(slot, key, value))
    whole, cut = (write(cache, slot) for cache in caches)
    assert [piece.num_slots for piece in whole.pieces] == [150]
    assert [piece.num_slots for piece in cut.pieces] == [64, 64, 22] and cut.starts == [0, 64, 128]
    for name in ("keys", "values", *(["key_scales", "value_scales"] if dtype == jnp.int8 else [])):
        joined = np.concatenate([getattr(piece, name) for piece in cut.pieces], axis=2)
        np.testing.assert_array_equal(joined, getattr(whole.pieces[0], name))
    if dtype == jnp.float32:
        expected = np.array(before[0])
        expected[:, slot : slot + count] = key
        np.testing.assert_array_equal(whole.pieces[0].keys.swapaxes(1, 2), expected)
