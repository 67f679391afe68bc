"""The decoder: codes of the full forward pass, one compilation, a cache in place, the same on every mesh."""

import contextlib
import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from loong_jax import sharding
from loong_jax.config import DecodingConfig, SamplingConfig, TransformerConfig
from loong_jax.models import kv_cache, transformer
from loong_jax.sampling import decode
from loong_jax.sampling.decode import make_decoder
from loong_jax.sampling.logits import rules_of

CONFIG = TransformerConfig(
    num_layers=2,
    model_dim=64,
    num_heads=16,
    num_kv_heads=8,
    mlp_dim=64,
    num_text_ids=50,
    num_video_ids=64,
    max_length=32,
)
PROMPT_SLOTS, MAX_STEPS = 8, 6
ALL, THREE = (jnp.int32(0), jnp.int32(MAX_STEPS)), (jnp.int32(0), jnp.int32(3))  # steps from the first on
SAMPLED = SamplingConfig(top_k=20, top_p=0.95, guidance_scale=3.0)
GREEDY = SamplingConfig(top_k=1, guidance_scale=3.0)


@cache
def sharp_params():
    return jax.tree.map(lambda x: 4 * x, transformer.init_params(CONFIG, jax.random.key(0)))


def make_prompts(batch: int, is_guided: bool) -> list[np.ndarray]:
    """Text ids of different lengths; with guidance a short row of its own after each."""
    rng = np.random.default_rng(5)
    prompts = []
    for row in range(batch):
        prompts.append(rng.integers(0, 50, 3 + row % 5).astype(np.int32))
        if is_guided:
            prompts.append(np.array([49, 48], np.int32))
    return prompts


def padded(prompts: list[np.ndarray], side: str = "left") -> tuple[np.ndarray, ...]:
    """Tokens, positions, validity [rows, PROMPT_SLOTS] and the positions [rows, MAX_STEPS] that follow."""
    tokens = np.full((len(prompts), PROMPT_SLOTS), 7, np.int32)  # an ordinary id: only ``valid`` may tell it apart
    positions, valid = np.zeros_like(tokens), np.zeros(tokens.shape, bool)
    for row, prompt in enumerate(prompts):
        length = len(prompt)
        place = slice(PROMPT_SLOTS - length, PROMPT_SLOTS) if side == "left" else slice(0, length)
        tokens[row, place], positions[row, place], valid[row, place] = prompt, np.arange(length), True
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    return tokens, positions, valid, lengths[:, None] + np.arange(MAX_STEPS, dtype=np.int32)


def keys_of(seeds) -> jax.Array:
    return jnp.stack([jax.random.key(seed) for seed in seeds])


class Runner:
    """A decoder of one shape on one mesh, with its parameters placed there."""

    def __init__(self, mesh, batch: int, is_guided: bool, params=None, is_ranked: bool = False, **decoding):
        self.decoder = make_decoder(
            CONFIG,
            mesh,
            batch=batch,
            is_guided=is_guided,
            num_slots=PROMPT_SLOTS + MAX_STEPS,
            frame_steps=MAX_STEPS,
            decoding=DecodingConfig(**decoding),
            is_ranked=is_ranked,
        )
        params = sharp_params() if params is None else params
        placed = jax.device_put(params, sharding.tree_shardings(mesh, params, transformer.logical_axes(CONFIG)))
        self.params = self.decoder.prepare(placed)
        self.cache = self.decoder.new_cache()

    def __call__(self, prompts, seeds, config: SamplingConfig, calls=(MAX_STEPS,), side: str = "left"):
        """Codes [batch, sum(calls)], sampled in so many calls of so many steps each."""
        tokens, positions, valid, following = padded(prompts, side)
        self.cache, logits, codes = self.decoder.prefill(self.params, self.cache, tokens, positions, valid)
        found, (rule,) = [], rules_of(config, False, 1)
        for index, steps in enumerate(calls):
            place = jnp.int32(sum(calls[:index])), jnp.int32(steps)
            before = codes
            self.cache, logits, codes, *self.likelihood = self.decoder.decode(
                self.params, self.cache, logits, codes, following, PROMPT_SLOTS, *place, keys_of(seeds), rule
            )
            np.testing.assert_array_equal(codes[:, steps:], before[:, steps:])
            found.append(codes[:, :steps])
        return np.concatenate(found, axis=1)


def greedy_by_full_forward(prompts: list[np.ndarray], is_guided: bool, scale: float) -> np.ndarray:
    """Grow every sequence by its best code, a whole forward pass per code, each row alone."""
    model = nnx.merge(transformer.abstract_params(CONFIG)[0], sharp_params())

    @jax.jit
    def video_logits(tokens, length):
        places = jnp.arange(tokens.shape[0])[None]
        hidden = model.hidden(tokens[None], places, (places < length).astype(jnp.int32))
        return model.logits(hidden[0, length - 1], 50, 114)

    def score(sequence):
        return np.asarray(video_logits(np.pad(sequence, (0, 16 - len(sequence))), len(sequence)), np.float64)

    rows, sequences = 2 if is_guided else 1, list(prompts)
    codes = []
    for first in range(0, len(prompts), rows):
        pair, chosen = sequences[first : first + rows], []
        for _ in range(MAX_STEPS):
            scores = [score(sequence) for sequence in pair]
            best = scores[0] if rows == 1 else scores[1] + scale * (scores[0] - scores[1])
            chosen.append(best.argmax())
            pair = [np.append(sequence, np.int32(50 + chosen[-1])) for sequence in pair]
        codes.append(chosen)
    return np.array(codes)


@pytest.mark.parametrize("is_guided", [False, True])
def test_codes_are_those_of_the_full_forward_pass(is_guided, make_mesh):
    prompts = make_prompts(4, is_guided)
    run = Runner(make_mesh(data=1), 4, is_guided)
    expected = greedy_by_full_forward(prompts, is_guided, GREEDY.guidance_scale)
    assert len(np.unique(expected)) > 4
    for side in ("left", "right"):
        np.testing.assert_array_equal(run(prompts, range(4), GREEDY, side=side), expected)


@pytest.mark.parametrize("is_guided", [False, True])
def test_one_compilation_for_prompts_parts_of_a_clip_rules_and_seeds(is_guided, make_mesh):
    run = Runner(make_mesh(data=1), 2, is_guided)
    prompts = make_prompts(2, is_guided)
    first = run(prompts, [1, 2], SAMPLED)
    run([prompt[:2] for prompt in prompts], [1, 2], SAMPLED)
    short = run(prompts, [1, 2], SAMPLED, calls=(3,))
    run(prompts, [1, 2], SamplingConfig(top_k=5, top_p=0.5, temperature=0.3, guidance_scale=7.5))
    other = run(prompts, [3, 4], SAMPLED)
    np.testing.assert_array_equal(run(prompts, [1, 2], SAMPLED), first)
    np.testing.assert_array_equal(short, first[:, :3])
    for calls in ((2, 2, 2), (1, 5), (4, 1, 1)):
        np.testing.assert_array_equal(run(prompts, [1, 2], SAMPLED, calls), first)
    assert (other != first).any()
    assert (run.decoder.prefill._cache_size(), run.decoder.decode._cache_size()) == (1, 1)


def test_a_prompt_and_its_seed_give_the_same_codes_in_any_batch(make_mesh):
    prompts = make_prompts(4, True)
    together = Runner(make_mesh(data=1), 4, True)(prompts, [10, 11, 12, 13], SAMPLED)
    alone = Runner(make_mesh(data=1), 1, True)
    for row in range(4):
        np.testing.assert_array_equal(
            alone(prompts[2 * row : 2 * row + 2], [10 + row], SAMPLED), together[row : row + 1]
        )


@pytest.mark.parametrize("is_guided", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_prefill_finds_the_latent_frame_that_a_prompt_ends_with(side, is_guided, make_mesh):
    frame = np.arange(50, 50 + MAX_STEPS, dtype=np.int32)
    prompts = [np.append(np.int32(3), frame), frame, np.append(frame, np.int32(3)), frame[:2]]
    run = Runner(make_mesh(data=1), 4, is_guided)
    pairs = [row for prompt in prompts for row in ([prompt, prompt[:1]] if is_guided else [prompt])]
    tokens, positions, valid, _ = padded(pairs, side)
    *_, codes = run.decoder.prefill(run.params, run.cache, tokens, positions, valid)
    whole = list(range(MAX_STEPS))
    np.testing.assert_array_equal(codes[:2], [whole, whole])
    np.testing.assert_array_equal(codes[2], [1, 2, 3, 4, 5, -1])
    np.testing.assert_array_equal(codes[3], [-1, -1, -1, -1, 0, 1])


def test_the_repetition_guard_looks_at_the_same_place_of_the_frame_before(make_mesh):
    """Against odds a millionth of what they were, no greedy code is that of the frame before; else each is."""
    run, prompts = Runner(make_mesh(data=1), 2, False), make_prompts(2, False)
    tokens, positions, valid, following = padded(prompts)
    found = {}
    for penalty in (1.0, 1e6):
        run.cache, logits, codes = run.decoder.prefill(run.params, run.cache, tokens, positions, valid)
        (rule,) = rules_of(dataclasses.replace(GREEDY, guidance_scale=1.0, repetition_penalty=penalty), False, 1)
        before = found.get(1.0, codes)
        run.cache, _, found[penalty] = run.decoder.decode(
            run.params, run.cache, logits, before, following, PROMPT_SLOTS, *THREE, keys_of([0, 1]), rule
        )
    assert (found[1.0][:, 0] != found[1e6][:, 0]).all()
    assert (found[1.0][:, :3] != found[1e6][:, :3]).all()


@pytest.mark.parametrize(
    ("sizes", "cache"), [({"data": 1}, "auto"), ({"data": 2, "fsdp": 2, "tensor": 2}, "int8")], ids=str
)
def test_the_cache_is_changed_in_place(sizes, cache, make_mesh, monkeypatch):
    monkeypatch.setattr(kv_cache, "_LEAST_BLOCK", 4)
    run = Runner(make_mesh(**sizes), 4, True, cache=cache)
    tokens, positions, valid, following = padded(make_prompts(4, True))
    local = [x.addressable_shards[0].data for x in jax.tree.leaves(run.cache)]
    num_bytes = sum(x.nbytes for x in local)
    decoder, old = run.decoder, run.cache
    prefill = decoder.prefill.lower(run.params, old, tokens, positions, valid).compile()
    assert prefill.memory_analysis().alias_size_in_bytes >= num_bytes
    store, logits, codes = decoder.prefill(run.params, old, tokens, positions, valid)
    num_bytes += logits.addressable_shards[0].data.nbytes
    arguments = (logits, codes, following, PROMPT_SLOTS, *THREE, keys_of(range(4)), *rules_of(SAMPLED, False, 1))
    decode = decoder.decode.lower(run.params, store, *arguments).compile()
    assert decode.memory_analysis().alias_size_in_bytes >= num_bytes
    after, *_ = decoder.decode(run.params, store, *arguments)
    assert all(x.is_deleted() for x in jax.tree.leaves((old, store, logits)))
    for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(decoder.new_cache()), strict=True):
        assert x.sharding == y.sharding


@pytest.mark.parametrize("is_mesh_set", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [{"data": 8}, {"fsdp": 8}, {"tensor": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"sequence": 2, "tensor": 4}],
    ids=str,
)
def test_codes_on_a_mesh_equal_those_without(sizes, is_mesh_set, make_mesh, monkeypatch):
    """Nor does it matter that the cache is here in pieces of four slots, and there in one."""
    prompts, seeds = make_prompts(8, True), range(8)
    expected = one_device_codes(make_mesh(data=1))
    monkeypatch.setattr(kv_cache, "_LEAST_BLOCK", 4)
    mesh = make_mesh(**sizes)
    with jax.set_mesh(mesh) if is_mesh_set else contextlib.nullcontext():
        run = Runner(mesh, 8, True)
        np.testing.assert_array_equal(run(prompts, seeds, SAMPLED), expected)
    rows, heads = sizes.get("data", 1) * sizes.get("fsdp", 1), sizes.get("tensor", 1)
    assert run.cache.layers[0].pieces[0].keys.addressable_shards[0].data.shape == (16 // rows, 8 // heads, 4, 4)


@cache
def one_device_codes(mesh) -> np.ndarray:
    return Runner(mesh, 8, True)(make_prompts(8, True), range(8), SAMPLED)


def test_only_the_video_columns_of_the_head_are_read(make_mesh):
    prompts = make_prompts(2, False)
    spoiled = {**sharp_params(), "head": sharp_params()["head"].at[:, :50].set(jnp.nan).at[:, 114:].set(jnp.nan)}
    expected = Runner(make_mesh(data=1), 2, False)(prompts, [0, 1], SAMPLED)
    found = Runner(make_mesh(data=1), 2, False, spoiled)(prompts, [0, 1], SAMPLED)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("is_guided", "parallel_ids"), [(False, 2), (True, 4), (True, 100)])
def test_ids_in_parallel_are_those_of_one_at_a_time(is_guided, parallel_ids, make_mesh):
    """For any seed, rule and parts of a clip; so their distribution is the same too."""
    prompts = make_prompts(8, is_guided)
    plain = Runner(make_mesh(data=1), 8, is_guided, is_ranked=True)
    parallel = Runner(make_mesh(data=1), 8, is_guided, is_ranked=True, parallel_ids=parallel_ids)
    narrow = SamplingConfig(top_k=2, temperature=0.2, guidance_scale=2.0, repetition_penalty=3.0)
    for rule in (SAMPLED, narrow):
        for calls in ((6,), (3, 3), (1, 4)):
            for first in (0, 100):
                seeds = range(first, first + 8)
                expected = plain(prompts, seeds, rule, calls)
                np.testing.assert_array_equal(parallel(prompts, seeds, rule, calls), expected)
                np.testing.assert_allclose(*parallel.likelihood, *plain.likelihood, rtol=1e-4)
    assert parallel.decoder.decode._cache_size() == 1


def test_a_guess_that_is_right_takes_no_step_of_its_own(make_mesh, monkeypatch):
    steps = []

    def counted(*arguments):
        jax.debug.callback(lambda: steps.append(1))
        return extend(*arguments)

    extend = decode.model.extend
    prompts, seeds = make_prompts(1, False), [7]
    expected = Runner(make_mesh(data=1), 1, False)(prompts, seeds, SAMPLED)
    run = Runner(make_mesh(data=1), 1, False, parallel_ids=6)
    tokens, positions, valid, following = padded(prompts)
    (rule,) = rules_of(SAMPLED, False, 1)
    wrong = (expected + 1) % 64
    for num_right, most in ((6, 1), (4, 3), (0, 6)):
        run.cache, logits, _ = run.decoder.prefill(run.params, run.cache, tokens, positions, valid)
        monkeypatch.setattr(decode.model, "extend", counted)
        guesses = np.where(np.arange(6) < num_right, expected, wrong)
        steps.clear()
        run.cache, _, codes = run.decoder.decode(
            run.params, run.cache, logits, guesses, following, PROMPT_SLOTS, *ALL, keys_of(seeds), rule
        )
        jax.effects_barrier()
        np.testing.assert_array_equal(codes, expected)
        assert 1 <= len(steps) <= most and (len(steps) > 1 or num_right == 6)


def test_ids_in_parallel_on_a_mesh_equal_those_without(make_mesh):
    run = Runner(make_mesh(data=2, fsdp=2, tensor=2), 8, True, parallel_ids=4)
    np.testing.assert_array_equal(run(make_prompts(8, True), range(8), SAMPLED), one_device_codes(make_mesh(data=1)))
