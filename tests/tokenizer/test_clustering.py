"""The clustering update against a float64 NumPy reading of the paper's rule (arXiv 2307.15139)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loong_jax.config import QuantizerConfig
from loong_jax.tokenizer.quantizer import ClusterState, cluster_codebook, similarity

NUM_CODES, DIM, NUM_LATENTS = 16, 4, 64


def numpy_similarity(latents, codes, distance):
    if distance == "cosine":
        latents = latents / np.linalg.norm(latents, axis=-1, keepdims=True)
        codes = codes / np.linalg.norm(codes, axis=-1, keepdims=True)
        return latents @ codes.T
    return -np.square(latents[:, None] - codes[None]).sum(axis=-1)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_fifty_steps_equal_the_rule_in_float64(distance):
    config = QuantizerConfig(num_codes=NUM_CODES, dim=DIM, distance=distance, normalize=False, anchor="closest")
    rng = np.random.default_rng(0)
    codebook = rng.normal(size=(NUM_CODES, DIM))
    usage = np.zeros(NUM_CODES)
    ours, state = jnp.asarray(codebook, jnp.float32), ClusterState.create(config, jax.random.key(0))
    for step in range(50):
        latents = rng.normal(size=(NUM_LATENTS, DIM)) + (step % 3)
        ids = numpy_similarity(latents, codebook, distance).argmax(axis=1)
        our_latents = jnp.asarray(latents, jnp.float32)
        our_ids = similarity(our_latents, ours, distance).argmax(axis=-1)
        np.testing.assert_array_equal(our_ids, ids)
        share = np.bincount(ids, minlength=NUM_CODES) / NUM_LATENTS
        usage = config.decay * usage + (1 - config.decay) * share
        alpha = np.exp(-usage * NUM_CODES * 10 / (1 - config.decay) - 1e-3)[:, None]
        anchors = latents[numpy_similarity(latents, codebook, distance).argmax(axis=0)]
        codebook = (1 - alpha) * codebook + alpha * anchors
        ours, state, our_share = cluster_codebook(ours, state, our_latents, our_ids, jax.random.key(step), config)
        np.testing.assert_allclose(our_share, share, atol=1e-6)
    np.testing.assert_allclose(ours, codebook, atol=1e-5)
    np.testing.assert_allclose(state.usage, usage, atol=1e-5)
