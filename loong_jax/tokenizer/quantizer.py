"""Clustering vector quantization: nearest code, straight-through gradient, and the update that keeps codes alive.

Source: "Online Clustered Codebook" (arXiv 2307.15139); the update rule is written out in ``cluster_codebook``.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from loong_jax.config import QuantizerConfig

_CHUNK = 1024  # codes compared at once, so that the latents x codes matrix is never whole in memory


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClusterState:
    """What the codebook remembers besides the codes.

    Running usage, for "random" recent latents, and the steps that each code has not been used for.
    """

    usage: Float[Array, " k"]
    pool: Float[Array, "k d"]
    idle: Int[Array, " k"]

    @staticmethod
    def create(config: QuantizerConfig, key: jax.Array) -> "ClusterState":
        """The state before the first step: no code was used, and the pool is small random codes."""
        bound = 1 / config.num_codes
        pool = jax.random.uniform(key, (config.num_codes, config.dim), minval=-bound, maxval=bound)
        zeros = jnp.zeros(config.num_codes)
        return ClusterState(usage=zeros, pool=pool, idle=zeros.astype(jnp.int32))

    def seen(self, share: Float[Array, " k"]) -> "ClusterState":
        """The state after a batch whose latents chose codes in these shares, where the codes do not move."""
        return dataclasses.replace(self, idle=jnp.where(share > 0, 0, self.idle + 1))

    def alive(self, config: QuantizerConfig) -> Float[Array, ""]:
        """Share of the codes used within the last ``config.dead_after`` steps."""
        return (self.idle < config.dead_after).mean()


class Quantized(NamedTuple):
    """Codes with straight-through gradient, their ids, the loss, and the latents as they were compared."""

    latents: Float[Array, "... d"]
    ids: Int[Array, "..."]
    loss: Float[Array, ""]
    compared: Float[Array, "n d"]


class Quantizer(nnx.Module):
    """The codebook and the nearest-code lookup; distances and losses in float32."""

    def __init__(self, config: QuantizerConfig, rngs: nnx.Rngs):
        self.config = config
        bound = 1 / config.num_codes
        shape = (config.num_codes, config.dim)
        codes = jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
        self.codebook = nnx.Param(unit(codes) if config.normalize else codes, logical_axes=(None, None))

    def __call__(self, latents: Float[Array, "... d"], active: Array | bool = True) -> Quantized:
        """Quantize ``latents``; where ``active`` is False the decoder gets them as they were compared.

        Ids and the codebook's loss are computed all the same, so that the codes follow; the commitment loss is not.
        """
        latents = self.comparable(latents)
        compared = latents.reshape(-1, self.config.dim)
        ids = self.assign(compared).reshape(latents.shape[:-1])
        codes = self.codes(ids)
        commitment = jnp.square(jax.lax.stop_gradient(codes) - latents).mean()
        codebook = jnp.square(codes - jax.lax.stop_gradient(latents)).mean()
        loss = self.config.commitment_weight * commitment + self.config.codebook_weight * codebook
        straight_through = latents + jax.lax.stop_gradient(codes - latents)
        return Quantized(
            latents=jnp.where(active, straight_through, latents),
            ids=ids,
            loss=jnp.where(active, loss, self.config.codebook_weight * codebook),
            compared=jax.lax.stop_gradient(compared),
        )

    def comparable(self, latents: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Latents as they are compared with codes."""
        latents = latents.astype(jnp.float32)
        return unit(latents) if self.config.normalize else latents

    def assign(self, latents: Float[Array, "n d"]) -> Int[Array, " n"]:
        """Id of the most similar code of each latent."""
        return nearest_codes(latents, self.codebook[...], self.config.distance)

    def codes(self, ids: Int[Array, "..."]) -> Float[Array, "... d"]:
        """The vectors that the decoder gets for ``ids``."""
        codes = self.codebook[...][ids]
        return unit(codes) if self.config.normalize else codes


def unit(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Scale vectors to length one."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-12)


def similarity(latents: Float[Array, "n d"], codes: Float[Array, "k d"], distance: str) -> Float[Array, "n k"]:
    """Cosine similarity, or the negative squared distance for "l2", in float32."""
    if distance == "cosine":
        return _products(unit(latents), unit(codes))
    lengths = jnp.square(latents).sum(axis=-1, keepdims=True) + jnp.square(codes).sum(axis=-1)[None]
    return 2 * _products(latents, codes) - lengths


def _products(latents, codes):
    # The default precision of a float32 product on TPU is bfloat16, which would swap close codes.
    return jnp.matmul(latents, codes.T, precision=jax.lax.Precision.HIGHEST)


def nearest_codes(latents: Float[Array, "n d"], codebook: Float[Array, "k d"], distance: str) -> Int[Array, " n"]:
    """Id of the most similar code of each latent, the first of equals; some codes at a time."""

    def best_of(chunk):
        codes, exists, _ = chunk
        affinity = jnp.where(exists[None], similarity(latents, codes, distance), -jnp.inf)
        return affinity.max(axis=-1), affinity.argmax(axis=-1)

    best, ids = jax.lax.map(best_of, _chunks(codebook))
    winner = best.argmax(axis=0)
    return (winner * _CHUNK + jnp.take_along_axis(ids, winner[None], axis=0)[0]).astype(jnp.int32)


def _chunks(codebook):
    """Codes [chunks, codes of a chunk, d], which of them exist, and the number of each chunk."""
    num_codes, dim = codebook.shape
    size = min(_CHUNK, num_codes)
    missing = -num_codes % size
    codes = jnp.pad(codebook, ((0, missing), (0, 0))).reshape(-1, size, dim)
    exists = (jnp.arange(num_codes + missing) < num_codes).reshape(-1, size)
    return codes, exists, jnp.arange(len(codes))


def cluster_codebook(
    codebook: Float[Array, "k d"],
    state: ClusterState,
    latents: Float[Array, "n d"],
    ids: Int[Array, " n"],
    key: jax.Array,
    config: QuantizerConfig,
) -> tuple[Float[Array, "k d"], ClusterState, Float[Array, " k"]]:
    """Move rarely used codes onto latents of this batch (Online Clustered Codebook, equations 3 to 6).

    With n_k the share of the batch's latents assigned to code k, its running usage p_k and a latent a_k as anchor::

        p_k <- gamma p_k + (1 - gamma) n_k
        alpha_k = exp(-10 K p_k / (1 - gamma) - 0.001)
        e_k <- (1 - alpha_k) e_k + alpha_k a_k

    Under jit over a sharded batch the sums and anchors are those of the whole batch.

    Returns:
        The new codebook, the new state, and n_k.
    """
    share = jnp.zeros(config.num_codes).at[ids].add(1 / ids.shape[0])
    usage = config.decay * state.usage + (1 - config.decay) * share
    alpha = jnp.exp(-usage * config.num_codes * 10 / (1 - config.decay) - 1e-3)[:, None]
    pool = _refill(state.pool, latents, key) if config.anchor == "random" else state.pool
    anchors = pool if config.anchor == "random" else _anchors(codebook, latents, key, config)
    state = dataclasses.replace(state, usage=usage, pool=pool).seen(share)
    return (1 - alpha) * codebook + alpha * anchors, state, share


def _anchors(codebook, latents, key, config):
    """One latent of the batch for each code, chosen for some codes at a time."""

    def choose(chunk):
        codes, _, number = chunk
        affinity = similarity(latents, codes, config.distance).T  # [codes, latents]
        if config.anchor == "closest":
            return affinity.argmax(axis=-1)
        return jax.random.categorical(jax.random.fold_in(key, number), affinity, axis=-1)

    return latents[jax.lax.map(choose, _chunks(codebook)).reshape(-1)[: len(codebook)]]


def _refill(pool, latents, key):
    """Overwrite random slots of the pool with the batch's latents; a batch larger than the pool replaces it."""
    slots, rows = len(pool), len(latents)
    order = jax.random.permutation(key, max(slots, rows))
    if rows >= slots:
        return latents[order[:slots]]
    return pool.at[order[:rows]].set(latents)


def perplexity(share: Float[Array, " k"]) -> Float[Array, ""]:
    """exp of the entropy of the codes' shares: the number of codes in even use."""
    return jnp.exp(-(share * jnp.log(share + 1e-10)).sum())
