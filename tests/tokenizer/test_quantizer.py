"""The quantizer by hand: nearest codes, gradients, anchors, the same on eight devices, and dead codes revived."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats

from loong_jax.config import QuantizerConfig
from loong_jax.tokenizer import quantizer as quantizer_module
from loong_jax.tokenizer.quantizer import ClusterState, Quantizer, cluster_codebook, nearest_codes

DIM, NUM_LATENTS = 4, 64


def units(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def brute_similarity(latents, codes, distance):
    if distance == "cosine":
        return units(latents) @ units(codes).T
    return -np.square(latents[:, None] - codes[None]).sum(axis=-1)


def cluster_case(num_codes, **changes):
    """A codebook whose usage is anything from dead to busy, and a batch; float64, with the config."""
    config = QuantizerConfig(num_codes=num_codes, dim=DIM, normalize=False, **changes)
    rng = np.random.default_rng(num_codes)
    arrays = {
        "codebook": rng.normal(size=(num_codes, DIM)),
        "usage": rng.uniform(size=num_codes) * np.logspace(-7, -2, num_codes),
        "pool": rng.normal(size=(num_codes, DIM)),
        "latents": rng.normal(size=(NUM_LATENTS, DIM)),
        "ids": rng.integers(0, num_codes // 2, NUM_LATENTS),
    }
    return config, arrays


def cluster(config, arrays, key, place=jnp.asarray):
    """Run ``cluster_codebook`` in float32; ``place`` puts the latents and their ids on devices."""
    codebook, usage, pool = (jnp.asarray(arrays[name], jnp.float32) for name in ("codebook", "usage", "pool"))
    latents, ids = place(arrays["latents"].astype(np.float32)), place(arrays["ids"].astype(np.int32))
    update = jax.jit(lambda *inputs: cluster_codebook(*inputs, config))
    return update(codebook, ClusterState(usage, pool, jnp.zeros(len(usage), jnp.int32)), latents, ids, key)


def moved(config, arrays, anchors):
    """The paper's update for given anchors, in float64."""
    share = np.bincount(arrays["ids"], minlength=config.num_codes) / NUM_LATENTS
    usage = config.decay * arrays["usage"] + (1 - config.decay) * share
    alpha = np.exp(-usage * config.num_codes * 10 / (1 - config.decay) - 1e-3)[:, None]
    return (1 - alpha) * arrays["codebook"] + alpha * anchors


@pytest.mark.parametrize("num_codes", [16, 96])
def test_random_anchors_are_recent_latents(num_codes):
    config, arrays = cluster_case(num_codes, anchor="random")
    key = jax.random.key(3)
    codebook, state, _ = cluster(config, arrays, key)
    pool, latents = np.asarray(state.pool), arrays["latents"].astype(np.float32)
    order = np.asarray(jax.random.permutation(key, max(num_codes, NUM_LATENTS)))
    if num_codes < NUM_LATENTS:  # every slot gets another latent
        np.testing.assert_array_equal(pool, latents[order[:num_codes]])
    else:  # every latent gets a slot, and the other slots keep what they had
        np.testing.assert_array_equal(pool[order[:NUM_LATENTS]], latents)
        untouched = order[NUM_LATENTS:]
        np.testing.assert_array_equal(pool[untouched], arrays["pool"].astype(np.float32)[untouched])
    np.testing.assert_allclose(codebook, moved(config, arrays, pool), atol=1e-5)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_probrandom_anchors_are_drawn_latents(distance):
    config, arrays = cluster_case(16, anchor="probrandom", distance=distance)
    key = jax.random.key(4)
    codebook, state, _ = cluster(config, arrays, key)
    affinity = brute_similarity(arrays["codebook"], arrays["latents"], distance)
    chunk_key = jax.random.fold_in(key, 0)
    drawn = np.asarray(jax.random.categorical(chunk_key, jnp.asarray(affinity, jnp.float32), axis=-1))
    assert len(np.unique(drawn)) > 8 and (drawn != affinity.argmax(axis=1)).any()
    np.testing.assert_allclose(codebook, moved(config, arrays, arrays["latents"][drawn]), atol=1e-5)
    np.testing.assert_array_equal(state.pool, arrays["pool"].astype(np.float32))


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_probrandom_draws_follow_the_softmax_of_the_similarity(distance):
    """Thousands of copies of one dead code: each draws an anchor of its own, all from one distribution."""
    copies = 8192
    config = QuantizerConfig(num_codes=copies, dim=DIM, distance=distance, normalize=False, anchor="probrandom")
    rng = np.random.default_rng(7)
    latents, code = rng.normal(size=(6, DIM)), rng.normal(size=DIM)
    arrays = {
        "codebook": np.tile(code, (copies, 1)),
        "usage": np.zeros(copies),
        "pool": np.zeros((copies, DIM)),
        "latents": latents,
        "ids": np.zeros(len(latents), int),
    }
    codebook, _, _ = cluster(config, arrays, jax.random.key(8))
    alpha = np.exp(-1e-3)
    anchors = (np.asarray(codebook)[1:] - (1 - alpha) * code) / alpha  # the first copy is in use and stays
    distances = np.linalg.norm(anchors[:, None] - latents[None], axis=-1)
    assert distances.min(axis=1).max() < 1e-4
    counts = np.bincount(distances.argmin(axis=1), minlength=len(latents))
    chances = np.exp(brute_similarity(code[None], latents, distance)[0])
    chances /= chances.sum()
    assert chances.max() > 2 * chances.min()
    assert stats.chisquare(counts, chances * counts.sum()).pvalue > 0.01


@pytest.mark.parametrize(
    ("anchor", "num_codes"), [("closest", 16), ("probrandom", 16), ("random", 16), ("random", 96)], ids=str
)
def test_eight_devices_move_the_codes_as_one_does(anchor, num_codes, make_mesh):
    config, arrays = cluster_case(num_codes, anchor=anchor)
    cut = NamedSharding(make_mesh(data=8), PartitionSpec("data"))
    placed = jax.device_put(arrays["latents"], cut)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(NUM_LATENTS // 8, DIM)}
    key = jax.random.key(5)
    alone = cluster(config, arrays, key)
    together = cluster(config, arrays, key, place=lambda x: jax.device_put(x, cut))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), alone, together)
    np.testing.assert_allclose(together[2], np.bincount(arrays["ids"], minlength=num_codes) / NUM_LATENTS, atol=1e-6)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_codes_compared_some_at_a_time_are_those_of_the_whole(distance, monkeypatch):
    monkeypatch.setattr(quantizer_module, "_CHUNK", 7)  # 16 codes are 7, 7 and 2
    config, arrays = cluster_case(16, anchor="closest", distance=distance)
    latents, codes = (jnp.asarray(arrays[name], jnp.float32) for name in ("latents", "codebook"))
    codes = codes.at[9].set(codes[2])  # of equal codes the first is taken
    affinity = brute_similarity(np.asarray(latents, np.float64), np.asarray(codes, np.float64), distance)
    ids = nearest_codes(latents, codes, distance)
    np.testing.assert_array_equal(ids, affinity.argmax(axis=1))
    assert 2 in ids and 9 not in ids and max(ids) > 13
    moved_codes, _, _ = cluster(config, arrays, jax.random.key(0))
    affinity = brute_similarity(arrays["latents"], arrays["codebook"], distance)
    anchors = arrays["latents"][affinity.argmax(axis=0)]
    np.testing.assert_allclose(moved_codes, moved(config, arrays, anchors), atol=1e-5)


def test_the_full_size_lookup_never_holds_all_similarities():
    """32 clips of 1,280 ids against 8,192 codes would be 1.3 GB."""
    latents, codes = jax.ShapeDtypeStruct((40960, 8), jnp.float32), jax.ShapeDtypeStruct((8192, 8), jnp.float32)
    memory = jax.jit(lambda *x: nearest_codes(*x, "cosine")).lower(latents, codes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.3 * 40960 * 8192 * 4


def test_steps_without_use_are_counted():
    config, arrays = cluster_case(16, dead_after=2)
    state = ClusterState(jnp.ones(16), jnp.zeros((16, DIM)), jnp.zeros(16, jnp.int32))
    ids, latents = jnp.asarray([3, 3, 5]), jnp.asarray(arrays["latents"][:3], jnp.float32)
    codebook = jnp.asarray(arrays["codebook"], jnp.float32)
    for step in range(1, 4):
        codebook, state, _ = cluster_codebook(codebook, state, latents, ids, jax.random.key(0), config)
        np.testing.assert_array_equal(state.idle, [0 if code in (3, 5) else step for code in range(16)])
        assert state.alive(config) == (1 if step < 2 else 2 / 16)


def quantizer_case(**changes):
    """A quantizer over a codebook of codes of various lengths, latents [2, 3, 5, DIM] and a weight for each output."""
    config = QuantizerConfig(num_codes=16, dim=DIM, commitment_weight=0.25, codebook_weight=0.75, **changes)
    rng = np.random.default_rng(1)
    codebook, latents = rng.normal(size=(16, DIM)), 2 * rng.normal(size=(2, 3, 5, DIM))
    quantizer = Quantizer(config, nnx.Rngs(0))
    quantizer.codebook[...] = jnp.asarray(codebook, jnp.float32)
    return quantizer, codebook, latents, rng.normal(size=latents.shape)


def through_unit(x, gradient):
    """The gradient at ``x``, given the one at ``units(x)``."""
    direction = units(x)
    along = (gradient * direction).sum(axis=-1, keepdims=True)
    return (gradient - along * direction) / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize(("distance", "normalize"), [("cosine", True), ("cosine", False), ("l2", True), ("l2", False)])
def test_ids_losses_and_gradients_by_hand(distance, normalize, active):
    quantizer, codebook, latents, weights = quantizer_case(distance=distance, normalize=normalize)
    graphdef, params = nnx.split(quantizer)

    def weighted(params, latents, active):
        output = nnx.merge(graphdef, params)(latents, active)
        return (output.latents * weights.astype(np.float32)).sum() + output.loss, output

    gradients, output = jax.jit(jax.grad(weighted, argnums=(0, 1), has_aux=True))(
        params, jnp.asarray(latents, jnp.float32), jnp.asarray(active)
    )
    compared = units(latents) if normalize else latents
    codes = units(codebook) if normalize else codebook
    flat = compared.reshape(-1, DIM)
    # The lookup compares with the codes as stored: for l2 their length counts, normalized or not.
    ids = brute_similarity(flat, codebook, distance).argmax(axis=1)
    assert len(np.unique(ids)) > 5
    np.testing.assert_array_equal(output.ids.reshape(-1), ids)
    assert output.ids.shape == latents.shape[:-1] and output.ids.dtype == jnp.int32
    chosen = codes[ids].reshape(latents.shape)
    np.testing.assert_allclose(output.compared, flat, atol=1e-6)
    np.testing.assert_allclose(output.latents, chosen if active else compared, atol=1e-5)
    mean_square = np.square(chosen - compared).mean()
    np.testing.assert_allclose(output.loss, (0.25 * active + 0.75) * mean_square, rtol=1e-5)

    away = 2 * (compared - chosen) / latents.size
    to_latents = weights + 0.25 * active * away
    to_codes = np.zeros_like(codebook)
    np.add.at(to_codes, ids, -0.75 * away.reshape(-1, DIM))
    if normalize:
        to_latents, to_codes = through_unit(latents, to_latents), through_unit(codebook, to_codes)
    np.testing.assert_allclose(gradients[1], to_latents, atol=1e-5)
    np.testing.assert_allclose(gradients[0]["codebook"][...], to_codes, atol=1e-6)


def test_fresh_codes_are_unit_vectors_that_differ():
    codes = np.asarray(Quantizer(QuantizerConfig(num_codes=64, dim=DIM), nnx.Rngs(0)).codebook[...])
    np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, atol=1e-5)
    assert (codes @ codes.T - 2 * np.eye(64)).max() < 0.9999


def usage_after_training(anchor, clustering):
    """Train 32 codes on latents in four narrow clusters; the share of each code in the end, and of the first step."""
    # A code that was busy once counts as dead only after its usage has decayed: soon, with this decay.
    config = QuantizerConfig(num_codes=32, dim=DIM, clustering=clustering, anchor=anchor, decay=0.9)
    centers = jnp.asarray(units(np.random.default_rng(2).normal(size=(4, DIM))), jnp.float32)
    graphdef, params = nnx.split(Quantizer(config, nnx.Rngs(0)))

    def step(carry, key):
        codebook, state = carry
        which, noise, draw = jax.random.split(key, 3)
        latents = centers[jax.random.randint(which, (256,), 0, 4)] + 0.05 * jax.random.normal(noise, (256, DIM))

        def loss(codebook):
            output = nnx.merge(graphdef, jax.tree.map(lambda _: codebook, params))(latents)
            return output.loss, output

        gradient, output = jax.grad(loss, has_aux=True)(codebook)
        clustered, new_state, share = cluster_codebook(codebook, state, output.compared, output.ids, draw, config)
        codebook, state = (clustered, new_state) if config.clustering else (codebook, state)
        return (codebook - 0.5 * gradient, state), share

    start = jax.tree.leaves(params)[0], ClusterState.create(config, jax.random.key(0))
    shares = jax.jit(lambda keys: jax.lax.scan(step, start, keys)[1])(jax.random.split(jax.random.key(1), 200))
    return np.asarray(shares[-50:]).mean(axis=0), np.asarray(shares[0])


@pytest.mark.parametrize("anchor", ["closest", "random", "probrandom"])
def test_clustering_revives_dead_codes(anchor):
    in_the_end, at_first = usage_after_training(anchor, clustering=True)
    assert (at_first > 0).mean() < 0.5 and (in_the_end > 0).all()


def test_without_clustering_codes_stay_dead():
    in_the_end, at_first = usage_after_training("probrandom", clustering=False)
    assert (at_first > 0).mean() < 0.5 and (in_the_end > 0).mean() < 0.5
