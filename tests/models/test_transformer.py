"""Contracts of the transformer: sharded = whole, packing never leaks, remat and scan keep values."""

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


@pytest.mark.parametrize("scan_layers", [True, False])
def test_gradients_that_wait_in_bfloat16_are_those_that_wait_in_float32(scan_layers, monkeypatch):
    config = dataclasses.replace(CONFIG, remat="full", compute_dtype="bfloat16", scan_layers=scan_layers)
    params, batch = sharp_params(), make_batch()
    found = jax.jit(jax.grad(lambda params: loss(config, params, batch)))(params)
    monkeypatch.setattr(transformer, "_gradient_ports", lambda blocks, dtype: (blocks, {}))
    expected = jax.jit(jax.grad(lambda params: loss(config, params, batch)))(params)
    assert np.abs(found["blocks"]["query"]).max() > 0
    jax.tree.map(np.testing.assert_array_equal, found, expected)


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
