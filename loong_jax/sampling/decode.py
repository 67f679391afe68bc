"""The compiled decoder: prefill in parallel, then one loop that samples code after code with the cache in place."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from loong_jax import sharding
from loong_jax.config import DecodingConfig, TransformerConfig
from loong_jax.models import decoding as model
from loong_jax.models.decoding import Storage
from loong_jax.models.kv_cache import KVCache
from loong_jax.models.transformer import compute_dtype
from loong_jax.sampling.logits import SamplingRule, choose, discourage, guide


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Jitted functions and the cache they share, for a fixed number of rows and slots.

    Rows are prompts; with guidance each prompt has two adjacent rows, conditional and null-text, so that a batch cut
    over devices keeps the pair together.

    ``prepare(params) -> params``: made once of a model's parameters, what the other two read; decoders of equal
    ``storage`` can share it.
    ``prefill(params, cache, tokens, positions, valid) -> (cache, logits, codes)``: prompts [rows, prompt_slots], padded
    on either side where not ``valid``; the logits [rows, num_video_ids] are those after each row's last valid token,
    the codes [batch, frame_steps] those of the latent frame that a prompt ends with, -1 where it ends otherwise.
    ``decode(params, cache, logits, codes, positions, start, num_steps, keys, rule) -> (cache, logits, codes)``: samples
    the steps [start, start + num_steps) of a clip, both traced, of which ``frame_steps`` at most, in place of so many
    of the ``codes`` of the latent frame before (which the repetition guard looks at). ``positions`` [rows, max_steps]
    says where every step's code goes; ``keys`` [batch] are folded with the step, so that a clip is the same in one call
    or in several. The logits are those after the last code.
    ``new_cache()``: an empty cache.
    ``prefill`` and ``decode`` donate the cache, and ``decode`` the logits.
    """

    storage: Storage
    prepare: Callable[[Any], Any]
    prefill: Callable[..., tuple[KVCache, Float[Array, "rows v"], Int[Array, "batch frame_steps"]]]
    decode: Callable[..., tuple[KVCache, Float[Array, "rows v"], Int[Array, "batch frame_steps"]]]
    new_cache: Callable[[], KVCache]


def make_decoder(
    config: TransformerConfig,
    mesh: Mesh,
    *,
    batch: int,
    is_guided: bool,
    prompt_slots: int,
    max_steps: int,
    frame_steps: int,
    decoding: DecodingConfig,
    is_ranked: bool = False,
) -> Decoder:
    """Build the decoder for ``batch`` prompts; nothing is compiled until it is called.

    With ``is_ranked``, ``decode`` returns besides the log-likelihood of the codes that it has sampled, float32 [batch]:
    given the prompt, at temperature 1 and without guidance.

    Raises:
        ConfigError: the mesh does not divide the rows or heads.
    """
    slots = prompt_slots + max_steps
    rows = batch * (2 if is_guided else 1)
    is_cpu = mesh.devices.flat[0].platform == "cpu"
    storage = Storage(is_int8=decoding.weights == "int8", is_transposed=is_cpu and rows == 1)
    dtype = jnp.int8 if decoding.cache == "int8" else compute_dtype(config)
    cache_shardings = KVCache.shardings(mesh, config, rows, slots, dtype)
    by_row = sharding.named_sharding(mesh, ("batch", None), (rows, config.num_video_ids), "logits")
    by_prompt = sharding.named_sharding(mesh, ("batch", None), (batch, frame_steps), "codes")
    first = config.num_text_ids

    @jax.jit
    def prepare(params: Any):
        params = model.decoding_params(params, config, first, first + config.num_video_ids, storage)
        places = sharding.tree_shardings(mesh, params, model.logical_axes(params))
        return jax.lax.with_sharding_constraint(params, places)

    @partial(jax.jit, donate_argnums=1, out_shardings=(cache_shardings, by_row, by_prompt))
    def prefill(
        params: Any,
        cache: KVCache,
        tokens: Int[Array, "rows p"],
        positions: Int[Array, "rows p *axes"],
        valid: Bool[Array, "rows p"],
    ):
        hidden, cache = model.extend(params, config, tokens, positions, valid, cache, 0)
        last = jnp.where(valid, jnp.arange(prompt_slots)[None], 0).max(axis=1)
        logits = model.logits(params, hidden[jnp.arange(rows), last])
        places = last[:, None] - jnp.arange(frame_steps)[None, ::-1]
        codes = jnp.take_along_axis(jnp.where(valid, tokens - first, -1), jnp.maximum(places, 0), axis=1)
        codes = jnp.where((places >= 0) & (codes < config.num_video_ids), jnp.maximum(codes, -1), -1)
        return cache, logits, codes[:: rows // batch]

    likelihoods = [sharding.named_sharding(mesh, ("batch",), (batch,))] * is_ranked

    @partial(jax.jit, donate_argnums=(1, 2), out_shardings=(cache_shardings, by_row, by_prompt, *likelihoods))
    def decode(
        params: Any,
        cache: KVCache,
        logits: Float[Array, "rows v"],
        codes: Int[Array, "batch frame_steps"],
        positions: Int[Array, "rows max_steps *axes"],
        start: Int[Array, ""],
        num_steps: Int[Array, ""],
        keys: Array,
        rule: SamplingRule,
    ):
        def step(index, carry):
            cache, logits, codes, *likelihood = carry
            odds = logits.reshape(batch, rows // batch, -1)[:, 0]
            if is_guided:
                pairs = logits.reshape(batch, 2, -1)
                logits = guide(pairs[:, 0], pairs[:, 1], rule.guidance_scale)
            before = jax.lax.dynamic_index_in_dim(codes, index - start, axis=1, keepdims=False)
            logits = discourage(logits, before, rule.repetition_penalty)
            code = choose(jax.vmap(jax.random.fold_in, (0, None))(keys, index), logits, rule)
            if is_ranked:
                drawn = jnp.take_along_axis(jax.nn.log_softmax(odds), code[:, None], axis=1)
                likelihood = [likelihood[0] + drawn[:, 0]]
            codes = jax.lax.dynamic_update_slice(codes, code[:, None], (0, index - start))
            tokens = (first + code).repeat(rows // batch)[:, None]
            place = jax.lax.dynamic_slice_in_dim(positions, index, 1, axis=1)
            valid = jnp.ones_like(tokens, bool)
            hidden, cache = model.extend(params, config, tokens, place, valid, cache, prompt_slots + index)
            return cache, model.logits(params, hidden[:, 0]), codes, *likelihood

        likelihood = [jnp.zeros(batch)] * is_ranked
        return jax.lax.fori_loop(start, start + num_steps, step, (cache, logits, codes, *likelihood))

    new_cache = jax.jit(lambda: KVCache.zeros(config, rows, slots, dtype), out_shardings=cache_shardings)
    return Decoder(storage, prepare, prefill, decode, new_cache)
