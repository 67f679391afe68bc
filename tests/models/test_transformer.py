"""Contracts of the transformer: cache = no cache, sharded = whole, packing never leaks, remat and scan keep values."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from loong_jax import sharding
from loong_jax.config import DEBUG_TRANSFORMER, TRANSFORMER_PRESETS, TransformerConfig
from loong_jax.models import transformer
from loong_jax.models.kv_cache import KVCache

CONFIG = TransformerConfig(
    num_layers=2, model_dim=64, num_heads=16, num_kv_heads=8, mlp_dim=64, num_text_ids=50, num_video_ids=64
)
GRAPHDEF, _ = transformer.abstract_params(CONFIG)
MESHES = [
    {"data": 1},
    {"data": 8},
    {"fsdp": 8},
    {"tensor": 8},
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"sequence": 8},
    {"fsdp": 2, "sequence": 2, "tensor": 2},
]


@cache
def sharp_params():
    """Weights four times as large as at the start, so that attention is far from uniform."""
    return jax.tree.map(lambda x: 4 * x, transformer.init_params(CONFIG, jax.random.key(0)))


def model_of(config: TransformerConfig, params) -> transformer.Transformer:
    return nnx.merge(transformer.abstract_params(config)[0], params)


def make_batch() -> dict[str, np.ndarray]:
    """Eight rows of 16 places: two packed segments and some padding."""
    rng = np.random.default_rng(1)
    segments = np.repeat(np.array([[1] * 6 + [2] * 8 + [0] * 2], np.int32), 8, axis=0)
    positions = np.repeat(np.array([[*range(6), *range(8), 0, 0]], np.int32), 8, axis=0)
    tokens = rng.integers(0, CONFIG.vocab_size, (8, 16), dtype=np.int32)
    return {"tokens": tokens, "positions": positions, "segment_ids": segments}


def loss(config: TransformerConfig, params, batch) -> jax.Array:
    """Cross-entropy of the next id over the video and special columns, on real places."""
    model = model_of(config, params)
    hidden = model.hidden(batch["tokens"], batch["positions"], batch["segment_ids"])
    scores = jax.nn.log_softmax(model.logits(hidden, config.num_text_ids))
    targets = jnp.roll(batch["tokens"], -1, axis=1) % scores.shape[-1]
    chosen = jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
    return -(chosen * (batch["segment_ids"] > 0)).mean()


def assert_trees_close(found, expected, tolerance):
    for (path, x), y in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        scale = np.abs(y).max()
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))


# Contract 1: cached decode = full forward.


def cached_and_full_logits(config: TransformerConfig, params, side: str) -> tuple[np.ndarray, np.ndarray]:
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
        return model_of(config, params).extend(*arguments)

    logits = jax.jit(lambda params, hidden: model_of(config, params).logits(hidden))
    empty = KVCache.zeros(config, rows, slots + steps, transformer.compute_dtype(config))
    hidden, store = extend(params, tokens, places_of(config, positions), valid, empty, 0)
    found, real = [logits(params, hidden[np.arange(rows), last])], np.ones((rows, 1), bool)
    for step in range(steps):
        following = lengths + step
        token = sequences[np.arange(rows), following]
        place = places_of(config, following[:, None])
        hidden, store = extend(params, token[:, None], place, real, store, slots + step)
        found.append(logits(params, hidden[:, 0]))

    places = np.tile(np.arange(slots + steps, dtype=np.int32), (rows, 1))
    full = jax.jit(lambda params, *arguments: model_of(config, params).hidden(*arguments))
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
def test_cached_decode_equals_full_forward(side, num_kv_heads):
    found, expected = cached_and_full_logits(*sharp_model(num_kv_heads, "float32"), side)
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


def test_decoding_params_change_no_logit():
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    hidden = jax.random.normal(jax.random.key(3), (2, 64), jnp.bfloat16)
    cut = transformer.decoding_params(sharp_params(), config, 50, 114)
    assert cut["head"].shape == (64, 64)
    assert {x.dtype for name, x in cut["blocks"].items() if "norm" not in name} == {jnp.dtype(jnp.bfloat16)}
    found = model_of(config, cut).logits(hidden, 0, 64)
    np.testing.assert_array_equal(found, model_of(config, sharp_params()).logits(hidden)[:, 50:114])


# Contract 3: sharded = unsharded.


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_loss_and_gradients_on_a_mesh_equal_those_without(sizes, make_mesh):
    """Of any attention, by the mesh, those of the reference: "auto" is "ring" where sequences are cut."""
    reference = dataclasses.replace(CONFIG, attention="reference")
    expected = jax.jit(jax.value_and_grad(lambda p, b: loss(reference, p, b)))(sharp_params(), make_batch())
    mesh = make_mesh(**sizes)
    shardings = sharding.tree_shardings(mesh, sharp_params(), transformer.logical_axes(CONFIG))
    with jax.set_mesh(mesh):
        step = jax.jit(
            jax.value_and_grad(lambda p, b: loss(CONFIG, p, b)), out_shardings=(sharding.replicated(mesh), shardings)
        )
        found = step(jax.device_put(sharp_params(), shardings), sharding.shard_batch(mesh, make_batch()))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    assert_trees_close(found[1], expected[1], 1e-4)


def test_sharded_init_gives_the_same_parameters_where_they_belong(make_mesh):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    _, abstract = transformer.abstract_params(CONFIG)
    shardings = sharding.tree_shardings(mesh, abstract, transformer.logical_axes(CONFIG))
    init = jax.jit(lambda key: transformer.init_params(CONFIG, key), out_shardings=shardings)
    found = init(jax.random.key(0))
    expected = jax.jit(lambda key: transformer.init_params(CONFIG, key))(jax.random.key(0))
    # The random bits are the same; the normal distribution made of them may round differently in another program.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected)
    assert found["embedding"].sharding.spec == jax.P(("tensor",), ("fsdp",))
    assert found["blocks"]["query"].addressable_shards[0].data.shape == (2, 32, 8, 4)


# Contract 8: packing never leaks.


def test_no_id_reaches_another_segment_or_an_earlier_place():
    batch, model = make_batch(), model_of(CONFIG, sharp_params())
    run = jax.jit(lambda tokens: model.hidden(tokens, batch["positions"], batch["segment_ids"]))
    before = np.asarray(run(batch["tokens"]))
    for place in range(16):
        changed = batch["tokens"].copy()
        changed[:, place] = (changed[:, place] + 1) % CONFIG.vocab_size
        moved = (np.asarray(run(changed)) != before).any(axis=(0, 2))
        segment = batch["segment_ids"][0]
        allowed = (segment == segment[place]) & (np.arange(16) >= place)
        assert not (moved & ~allowed & (segment > 0)).any()
        assert moved[place]


def test_packed_sequences_are_as_if_alone():
    batch, model = make_batch(), model_of(CONFIG, sharp_params())
    packed = model.hidden(batch["tokens"], batch["positions"], batch["segment_ids"])
    for start, stop in ((0, 6), (6, 14)):
        places = np.tile(np.arange(stop - start, dtype=np.int32), (8, 1))
        alone = model.hidden(batch["tokens"][:, start:stop], places, np.ones_like(places))
        assert_trees_close(packed[:, start:stop], alone, 1e-5)


# Contract 9: remat and scan on and off.


def test_remat_and_scan_change_the_program_but_not_the_gradients():
    batch, programs, gradients = make_batch(), {}, {}
    for remat in ("none", "dots", "full"):
        for scan_layers in (True, False):
            config = dataclasses.replace(CONFIG, remat=remat, scan_layers=scan_layers, attention="reference")
            gradient = jax.grad(lambda params, config=config: loss(config, params, batch))
            programs[remat, scan_layers] = jax.make_jaxpr(gradient)(sharp_params())
            gradients[remat, scan_layers] = jax.jit(gradient)(sharp_params())
    assert len({str(program) for program in programs.values()}) == 6
    for (remat, scan_layers), program in programs.items():
        assert ("scan[" in str(program)) == scan_layers
        assert ("prevent_cse" in str(program)) == (remat != "none")
        assert_trees_close(gradients[remat, scan_layers], gradients["none", True], 1e-5)


def test_layer_inputs_in_the_hosts_memory_change_no_gradient():
    config = dataclasses.replace(CONFIG, remat="offload", attention="reference")
    gradient = jax.grad(lambda params: loss(config, params, make_batch()))
    program = str(jax.make_jaxpr(gradient)(sharp_params()))
    assert "f32<host>[2,8,16,64]" in program and "f32[2,8,16,64]" not in program
    expected = jax.grad(lambda params: loss(CONFIG, params, make_batch()))(sharp_params())
    assert_trees_close(jax.jit(gradient)(sharp_params()), expected, 1e-5)


@pytest.mark.parametrize("sizes", [None, {"fsdp": 2, "tensor": 4}], ids=str)
def test_the_mlp_in_parts_is_the_whole_mlp(sizes, make_mesh):
    config = dataclasses.replace(CONFIG, remat="full", mlp_parts=2)
    expected = jax.jit(jax.grad(lambda params: loss(CONFIG, params, make_batch())))(sharp_params())
    gradient = jax.jit(jax.grad(lambda params: loss(config, params, make_batch())))
    if sizes is None:
        assert_trees_close(gradient(sharp_params()), expected, 1e-5)
        return
    mesh = make_mesh(**sizes)
    shardings = sharding.tree_shardings(mesh, sharp_params(), transformer.logical_axes(CONFIG))
    with jax.set_mesh(mesh):
        assert_trees_close(gradient(jax.device_put(sharp_params(), shardings)), expected, 1e-5)


def test_the_mlp_in_parts_computes_nothing_twice():
    """What the layer would compute again for the parts to compute again is dropped."""

    def products(**changes):
        config = dataclasses.replace(CONFIG, remat="full", attention="reference", **changes)
        gradient = jax.jit(jax.grad(lambda params: loss(config, params, make_batch())))
        return gradient.lower(sharp_params()).as_text().count("dot_general")  # a loop's body counts once

    assert products(mlp_parts=2) == products()


def test_remat_computes_more_matrix_products_the_less_it_keeps():
    def products(remat):
        config = dataclasses.replace(CONFIG, remat=remat, scan_layers=False)
        lowered = jax.jit(jax.grad(lambda params: loss(config, params, make_batch()))).lower(sharp_params())
        return lowered.as_text().count("dot_general")

    assert products("none") < products("dots") < products("full")


# Shapes, sizes and starting values.


def test_similar_codes_start_as_similar_ids():
    """Angles between rows follow those between code vectors; each id predicts itself; other rows stay as they were."""
    config = dataclasses.replace(DEBUG_TRANSFORMER, num_text_ids=5, num_video_ids=300, model_dim=512)
    plain = transformer.init_params(config, jax.random.key(0))
    codes = np.random.default_rng(0).normal(size=(300, 4)) + 3
    params = transformer.embed_codes(plain, config, jnp.asarray(codes, jnp.float32), jax.random.key(1))
    rows = np.asarray(params["embedding"], np.float64)[5:305]
    np.testing.assert_array_equal(params["head"][:, 5:305], rows.T)

    def cosines(x):
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        return (x @ x.T)[np.triu_indices(len(x), 1)]

    assert np.corrcoef(cosines(rows), cosines(codes - codes.mean(0)))[0, 1] > 0.95
    assert 0.9 < rows.std() / 0.02 < 1.1
    for row in (slice(0, 5), slice(305, None)):
        np.testing.assert_array_equal(params["embedding"][row], plain["embedding"][row])
        np.testing.assert_array_equal(params["head"][:, row], plain["head"][:, row])


@pytest.mark.parametrize(("name", "billions"), [("700m", 0.803), ("3b", 3.192), ("7b", 6.807)])
def test_full_sizes_are_described_without_memory(name, billions, make_mesh):
    config = TRANSFORMER_PRESETS[name]
    _, params = transformer.abstract_params(config)
    d, f, layers = config.model_dim, config.mlp_dim, config.num_layers
    by_hand = 2 * 40320 * d + d + layers * (4 * d * d + 3 * d * f + 2 * d)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == by_hand
    assert round(by_hand / 1e9, 3) == billions
    axes = transformer.logical_axes(config)
    assert jax.tree.structure(params) == jax.tree.structure(axes, is_leaf=lambda x: isinstance(x, tuple))
    sharding.tree_shardings(make_mesh(fsdp=4, tensor=2), params, axes)  # raises where the mesh does not fit


def test_parameters_start_as_published():
    params = transformer.init_params(CONFIG, jax.random.key(0))
    for path, value in jax.tree.leaves_with_path(params):
        assert value.dtype == jnp.float32
        if "norm" in jax.tree_util.keystr(path):
            assert (value == 1).all()
        else:
            np.testing.assert_allclose([value.mean(), value.std()], [0, 0.02], atol=1e-3)


def test_logits_are_float32_columns_of_the_real_vocabulary():
    model = model_of(dataclasses.replace(CONFIG, compute_dtype="bfloat16"), sharp_params())
    hidden = jax.random.normal(jax.random.key(3), (2, 3, 64), jnp.bfloat16)
    every = model.logits(hidden)
    assert every.shape == (2, 3, CONFIG.vocab_size) and every.dtype == jnp.float32
    np.testing.assert_array_equal(model.logits(hidden, 50, 114), every[..., 50:114])
