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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClusterState:
    """What the codebook remembers besides the codes: running usage [codes] and, for "random", recent latents."""

    usage: Float[Array, " k"]
    pool: Float[Array, "k d"]

    @staticmethod
    def create(config: QuantizerConfig, key: jax.Array) -> "ClusterState":
        bound = 1 / config.num_codes
        pool = jax.random.uniform(key, (config.num_codes, config.dim), minval=-bound, maxval=bound)
        return ClusterState(usage=jnp.zeros(config.num_codes), pool=pool)


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
        latents = latents.astype(jnp.float32)
        if self.config.normalize:
            latents = unit(latents)
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

    def assign(self, latents: Float[Array, "n d"]) -> Int[Array, " n"]:
        """Id of the most similar code of each latent."""
        return similarity(latents, self.codebook[...], self.config.distance).argmax(axis=-1).astype(jnp.int32)

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
        return unit(latents) @ unit(codes).T
    return (
        2 * latents @ codes.T - jnp.square(latents).sum(axis=-1, keepdims=True) - jnp.square(codes).sum(axis=-1)[None]
    )


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
    return (1 - alpha) * codebook + alpha * anchors, ClusterState(usage, pool), share


def _anchors(codebook, latents, key, config):
    affinity = similarity(latents, codebook, config.distance).T  # [codes, latents]
    if config.anchor == "probrandom":
        return latents[jax.random.categorical(key, affinity, axis=-1)]
    return latents[affinity.argmax(axis=-1)]


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
