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
    ``prefill(params, cache, tokens, positions, valid) -> (cache, logits, codes)``: prompts [rows, p], compiled for each
    p, padded on either side where not ``valid``; the logits [rows, num_video_ids] are those after each row's last valid
    token, the codes [batch, frame_steps] those of the latent frame that a prompt ends with, -1 where it ends otherwise.
    ``decode(params, cache, logits, codes, positions, first_slot, start, num_steps, keys, rule)`` gives the same three.
    It samples the steps [start, start + num_steps) of a clip, both traced, of which ``frame_steps`` at most, in place
    of so many of the ``codes`` of the latent frame before (which the repetition guard looks at). ``positions``
    [rows, steps] says where every step's code goes in a clip, ``first_slot`` where step 0 is in the cache: behind the
    last valid token of every prompt. ``keys`` [batch] are folded with the step, so that a clip is the same in
    one call or in several. The logits are those after the last code.
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
    num_slots: int,
    frame_steps: int,
    decoding: DecodingConfig,
    is_ranked: bool = False,
) -> Decoder:
    """Build the decoder for ``batch`` prompts; nothing is compiled until it is called.

    A prompt and the steps after it have ``num_slots`` together, ``frame_steps`` are those of a latent frame.

    A step feeds ``decoding.parallel_ids`` codes, the first chosen and the others guessed, and keeps them as far as each
    guess is the code that is then chosen at its place: speculative Jacobi decoding (arXiv 2410.01699) where a place's
    noise is the same in every step, so that the codes are those of one at a time, whatever was guessed.

    With ``is_ranked``, ``decode`` returns besides the log-likelihood of the codes that it has sampled, float32 [batch]:
    given the prompt, at temperature 1 and without guidance.

    Raises:
        ConfigError: the mesh does not divide the rows or heads.
    """
    window = min(decoding.parallel_ids, frame_steps)
    slots = num_slots + window - 1  # the last window reaches beyond the end
    rows = batch * (2 if is_guided else 1)
    is_cpu = mesh.devices.flat[0].platform == "cpu"
    storage = Storage(is_int8=decoding.weights == "int8", is_transposed=is_cpu and rows * window == 1)
    dtype = jnp.int8 if decoding.cache == "int8" else compute_dtype(config)

    def empty() -> KVCache:
        return KVCache.zeros(config, rows, slots, dtype, is_cut=is_cpu)

    cache_shardings = jax.eval_shape(empty).shardings(mesh)
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
        last = jnp.where(valid, jnp.arange(tokens.shape[1])[None], 0).max(axis=1)
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
        positions: Int[Array, "rows steps *axes"],
        first_slot: Int[Array, ""],
        start: Int[Array, ""],
        num_steps: Int[Array, ""],
        keys: Array,
        rule: SamplingRule,
    ):
        end, before = start + num_steps, codes
        positions = jnp.pad(positions, [(0, 0), (0, window - 1)] + [(0, 0)] * (positions.ndim - 2), mode="edge")

        def pick(index: Int[Array, ""], logits: Float[Array, "rows v"]):
            """The code of every prompt at one place, and its log-likelihood."""
            odds = logits.reshape(batch, rows // batch, -1)[:, 0]
            if is_guided:
                pairs = logits.reshape(batch, 2, -1)
                logits = guide(pairs[:, 0], pairs[:, 1], rule.guidance_scale)
            repeated = before.at[:, index - start].get(mode="fill", fill_value=-1)
            logits = discourage(logits, repeated, rule.repetition_penalty)
            code = choose(jax.vmap(jax.random.fold_in, (0, None))(keys, index), logits, rule)
            return code, jnp.take_along_axis(jax.nn.log_softmax(odds), code[:, None], axis=1)[:, 0]

        def step(carry):
            index, cache, logits, codes, *likelihood = carry
            code, drawn = pick(index, logits)
            codes = jax.lax.dynamic_update_slice(codes, code[:, None], (0, index - start))
            # The first code of the window is certain; each after it is what was chosen there in the step before, or
            # at the same place of the latent frame before.
            guesses = jax.lax.dynamic_slice_in_dim(codes, index - start, window, axis=1)
            tokens = (first + guesses).repeat(rows // batch, axis=0)
            places = jax.lax.dynamic_slice_in_dim(positions, index, window, axis=1)
            valid = jnp.ones_like(tokens, bool)
            hidden, cache = model.extend(params, config, tokens, places, valid, cache, first_slot + index)
            logits, count = model.logits(params, hidden), 1
            if window > 1:
                following = index + jnp.arange(1, window)
                chosen, odds = jax.vmap(pick, in_axes=(0, 1), out_axes=1)(following, logits[:, :-1])
                is_right = (chosen == guesses[:, 1:]).all(axis=0)  # rows advance together
                count = jnp.minimum(1 + jnp.cumprod(is_right.astype(jnp.int32)).sum(), end - index)
                codes = jax.lax.dynamic_update_slice(codes, chosen, (0, index - start + 1))
                drawn += jnp.where(following < index + count, odds, 0).sum(axis=1)
            logits = jax.lax.dynamic_index_in_dim(logits, count - 1, axis=1, keepdims=False)
            return index + count, cache, logits, codes, *(total + drawn for total in likelihood)

        codes = jnp.pad(codes, ((0, 0), (0, window - 1)), constant_values=-1)
        carry = (start, cache, logits, codes, *[jnp.zeros(batch)] * is_ranked)
        _, cache, logits, codes, *likelihood = jax.lax.while_loop(lambda carry: carry[0] < end, step, carry)
        codes = jnp.where(jnp.arange(frame_steps) < num_steps, codes[:, :frame_steps], before)
        return cache, logits, codes, *likelihood

    return Decoder(storage, prepare, prefill, decode, jax.jit(empty, out_shardings=cache_shardings))
