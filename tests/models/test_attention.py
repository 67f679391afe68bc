"""Contract 11: every implementation of attention gives the values and gradients of the reference, or refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loong_jax.models import ring_attention as ring
from loong_jax.models import splash_attention as splash
from loong_jax.models.attention import attention, choose, cudnn_attention
from loong_jax.models.attention_mask import Mask

RNG = np.random.default_rng(0)
# Two rows of 200 places: two segments and padding after them; padding before one segment.
SEGMENTS = np.array([[1] * 70 + [2] * 100 + [0] * 30, [0] * 10 + [7] * 190], np.int32)
QUERY, COTANGENT = (RNG.standard_normal((2, 200, 4, 8), np.float32) for _ in range(2))
KEY, VALUE = (RNG.standard_normal((2, 200, 2, 8), np.float32) for _ in range(2))
MASKS = {
    "causal": Mask(),
    "segments": Mask(SEGMENTS),
    "window": Mask(SEGMENTS, window=50),
    "both ways": Mask(SEGMENTS, causal=False),
}


def allowed_by_definition(mask: Mask) -> np.ndarray:
    allowed = np.zeros((2, 200, 200), bool)
    for b, t in np.ndindex(2, 200):
        first = t - mask.window + 1 if mask.window else 0
        places = range(max(0, first), t + 1 if mask.causal else 200)
        same = [s for s in places if mask.segment_ids is None or SEGMENTS[b, t] == SEGMENTS[b, s] > 0]
        allowed[b, t, same] = True
    return allowed


def cotangent_of(mask: Mask) -> np.ndarray:
    """Nothing asks for what padding gets."""
    real = np.ones_like(SEGMENTS) if mask.segment_ids is None else SEGMENTS > 0
    return COTANGENT * real[:, :, None, None]


def numpy_results(mask: Mask) -> list[np.ndarray]:
    """The output where a query attends to anything, else 0, and the gradients of query, key and value; float64."""
    wide = np.float64
    query, cotangent = QUERY.astype(wide), cotangent_of(mask).astype(wide)
    key, value = (np.repeat(x.astype(wide), 2, axis=2) for x in (KEY, VALUE))
    weights = np.exp(np.einsum("btnh,bsnh->bnts", query, key) / 8**0.5) * allowed_by_definition(mask)[:, None]
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    out = np.einsum("bnts,bsnh->btnh", weights, value)
    from_out = np.einsum("btnh,bsnh->bnts", cotangent, value) - (cotangent * out).sum(-1).swapaxes(1, 2)[..., None]
    from_scores = weights * from_out / 8**0.5
    by_head = (np.einsum("bnts,btnh->bsnh", *pair) for pair in ((from_scores, query), (weights, cotangent)))
    shared = (x.reshape(2, 200, 2, 2, 8).sum(3) for x in by_head)
    return [out, np.einsum("bnts,bsnh->btnh", from_scores, key), *shared]


def results(mask: Mask, attend) -> list[np.ndarray]:
    """The same by ``attend(query, key, value, mask)``, which must be finite for padding too."""

    @jax.jit
    def run(query, key, value, mask, cotangent):
        out, pull = jax.vjp(lambda *arrays: attend(*arrays, mask), query, key, value)
        return out, *pull(cotangent)

    inputs = jax.tree.map(jnp.asarray, (QUERY, KEY, VALUE, mask))
    for found in run(*inputs, COTANGENT):
        assert np.isfinite(found).all()
    out, *gradients = map(np.asarray, run(*inputs, cotangent_of(mask)))
    return [out * allowed_by_definition(mask).any(-1)[:, :, None, None], *gradients]


def assert_equal_results(mask: Mask, attend):
    for found, expected in zip(results(mask, attend), numpy_results(mask), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MASKS)
def test_dense_mask(name):
    dense = MASKS[name].dense(200)
    assert dense.shape[0] == (1 if name == "causal" else 2)
    np.testing.assert_array_equal(np.broadcast_to(dense, (2, 200, 200)), allowed_by_definition(MASKS[name]))


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_values_and_gradients(name, implementation):
    assert_equal_results(MASKS[name], lambda *arguments: attention(*arguments, implementation))


@pytest.mark.parametrize("name", MASKS)
def test_splash_kernels(name, monkeypatch):
    monkeypatch.setattr(splash, "_LARGEST_BLOCK", 128)  # 200 places are two blocks, padded
    assert_equal_results(MASKS[name], lambda *arguments: splash.splash_attention(*arguments, interpret=True))


@pytest.mark.parametrize("sizes", [{"sequence": 8}, {"fsdp": 2, "sequence": 2, "tensor": 2}], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_ring(name, sizes, make_mesh, monkeypatch):
    monkeypatch.setattr(ring, "_LARGEST_CHUNK", 60)  # of the 100 places of one device
    with jax.set_mesh(make_mesh(**sizes)):
        assert_equal_results(MASKS[name], lambda *arguments: attention(*arguments, "ring"))


def test_blocks_on_a_mesh(make_mesh):
    with jax.set_mesh(make_mesh(data=2, tensor=2)):
        assert_equal_results(MASKS["window"], lambda *arguments: attention(*arguments, "xla"))


@pytest.mark.parametrize("mask", [Mask(), Mask(window=50), Mask(window=1), Mask(causal=False)], ids=str)
def test_cudnn_is_asked_for_the_same_mask(mask):
    """The kernels need a GPU; JAX takes the same arguments for its own XLA implementation."""
    arrays = tuple(map(jnp.asarray, (QUERY, KEY, VALUE)))
    expected = attention(*arrays, mask, "reference")
    np.testing.assert_allclose(cudnn_attention(*arrays, mask, implementation="xla"), expected, rtol=0, atol=1e-5)


def test_blocks_read_no_key_that_no_query_of_theirs_may_see():
    for mask, unread, queries in (
        (Mask(), slice(128, None), slice(128)),
        (Mask(window=50), slice(79), slice(128, None)),
    ):
        key, value = (jnp.asarray(x).at[:, unread].set(jnp.nan) for x in (KEY, VALUE))
        out = jax.jit(lambda *arrays, mask=mask: attention(*arrays, mask, "xla"))(QUERY, key, value)
        assert np.isfinite(out[:, queries]).all()


def test_blocks_keep_no_weights_for_the_gradients():
    def kept(implementation):
        def pull(query, key, value, mask):
            return jax.vjp(lambda *arrays: attention(*arrays, mask, implementation), query, key, value)[1]

        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(pull, QUERY, KEY, VALUE, MASKS["segments"])))

    assert kept("reference") > 2 * 4 * 200**2
    of_rows = QUERY.size + QUERY.size // QUERY.shape[-1]  # the result, and the logarithm of each row's weights
    assert kept("xla") == QUERY.size + KEY.size + VALUE.size + SEGMENTS.size + of_rows


@pytest.mark.parametrize("implementation", ["reference", "xla", "splash"])
def test_bfloat16_rounds_the_result_and_not_the_softmax(implementation):
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in (QUERY, KEY, VALUE)]
    exact = attention(*(x.astype(jnp.float32) for x in arrays), Mask(SEGMENTS), "reference")
    if implementation == "splash":
        found = splash.splash_attention(*arrays, Mask(SEGMENTS), interpret=True)
    else:
        found = attention(*arrays, Mask(SEGMENTS), implementation)
    assert found.dtype == jnp.bfloat16
    real = SEGMENTS > 0
    np.testing.assert_allclose(found.astype(jnp.float32)[real], exact[real], rtol=0, atol=0.03)


# Refusals and choices.


def shaped(t=256, h=64, dtype=jnp.bfloat16, n=4):
    return jax.ShapeDtypeStruct((2, t, n, h), dtype)


def attended(implementation, query, key, mask=None):
    return jax.eval_shape(lambda q, k: attention(q, k, k, mask or Mask(), implementation), query, key)


@pytest.mark.parametrize(
    ("implementation", "query", "key", "mask", "message"),
    [
        ("cudnn", shaped(), shaped(), Mask(np.ones((2, 256), np.int32)), "knows no segments.*model.attention='xla'"),
        ("cudnn", shaped(dtype=jnp.float32), shaped(dtype=jnp.float32), Mask(), "bfloat16 or float16"),
        ("cudnn", shaped(h=256), shaped(h=256), Mask(), "up to 128"),
        ("ring", shaped(), shaped(), Mask(), "needs a mesh"),
        ("flash", shaped(), shaped(), Mask(), "no attention 'flash'"),
        ("xla", shaped(), shaped(n=3), Mask(), "multiple of k"),
        ("xla", shaped(), shaped(t=128), Mask(), "Self-attention"),
    ],
)
def test_what_cannot_be_done_is_refused(implementation, query, key, mask, message):
    with pytest.raises(ValueError, match=message):
        attended(implementation, query, key, mask)


@pytest.mark.parametrize("implementation", ["xla", "splash", "cudnn"])
def test_whole_sequences_are_not_gathered_from_a_mesh_that_cuts_them(implementation, make_mesh):
    with jax.set_mesh(make_mesh(sequence=2)), pytest.raises(ValueError, match="use model.attention='ring'"):
        attended(implementation, shaped(), shaped())


@pytest.mark.parametrize(
    ("options", "message"), [({"window": -1}, "at least 1"), ({"causal": False, "window": 2}, "back")]
)
def test_impossible_masks(options, message):
    with pytest.raises(ValueError, match=message):
        Mask(**options)


@pytest.mark.parametrize(
    ("platform", "parts", "query", "mask", "expected"),
    [
        ("cpu", 1, shaped(), Mask(), "xla"),
        ("tpu", 1, shaped(), Mask(SEGMENTS), "splash"),
        ("tpu", 1, shaped(t=127), Mask(SEGMENTS), "xla"),
        ("gpu", 1, shaped(), Mask(window=9), "cudnn"),
        ("gpu", 1, shaped(), Mask(SEGMENTS), "xla"),
        ("gpu", 1, shaped(dtype=jnp.float32), Mask(), "xla"),
        ("gpu", 1, shaped(h=100), Mask(), "xla"),
        *((platform, 2, shaped(), Mask(SEGMENTS), "ring") for platform in ("cpu", "gpu", "tpu")),
    ],
)
def test_automatic_choice(platform, parts, query, mask, expected):
    assert choose(platform, parts, query, mask) == expected
