"""Choosing codes: restrictions against a float64 reference, frequencies of draws, one compilation for all rules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loong_jax.config import SamplingConfig
from loong_jax.sampling.logits import SamplingRule, choose, discourage, guide, restrict, rules_of

RULES = {
    "plain": SamplingConfig(top_k=0),
    "cold": SamplingConfig(top_k=0, temperature=0.5),
    "top-k": SamplingConfig(top_k=3),
    "top-p": SamplingConfig(top_k=0, top_p=0.7),
    "min-p": SamplingConfig(top_k=0, min_p=0.2),
    "all": SamplingConfig(top_k=7, top_p=0.8, min_p=0.05, temperature=1.5),
    "k above the number of codes": SamplingConfig(top_k=100),
}
LOGITS = np.random.default_rng(0).normal(0, 1.5, (3, 16)).astype(np.float32)


def rule_of(config: SamplingConfig) -> SamplingRule:
    return rules_of(config, False, 1)[0]


def reference_probabilities(logits: np.ndarray, config: SamplingConfig) -> np.ndarray:
    """One row, float64, code by code: top-k, then top-p among those, then min-p."""
    scores = logits.astype(np.float64) / config.temperature
    order = np.argsort(-scores)
    kept = list(order[: config.top_k or len(order)])
    weights = np.exp(scores[kept] - scores.max())
    probabilities = dict(zip(kept, weights / weights.sum(), strict=True))
    nucleus, reached = [], 0.0
    for code in kept:
        if reached < config.top_p:
            nucleus.append(code)
        reached += probabilities[code]
    kept = [code for code in nucleus if probabilities[code] >= config.min_p * probabilities[order[0]]]
    result = np.zeros(len(scores))
    result[kept] = np.exp(scores[kept] - scores.max())
    return result / result.sum()


@pytest.mark.parametrize("config", RULES.values(), ids=RULES)
def test_restrict_keeps_the_right_codes_and_their_odds(config):
    found = jax.nn.softmax(restrict(jnp.asarray(LOGITS), rule_of(config)), axis=-1)
    expected = np.stack([reference_probabilities(row, config) for row in LOGITS])
    np.testing.assert_array_equal(np.asarray(found) > 0, expected > 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_restrictions_of_thousands_of_codes(seed):
    """Where probabilities spread over many codes, of any size and sign, with ties and codes without odds."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(rng.normal(0, 20), 3.0, (2, 2048)).astype(np.float32).round(1)
    logits[:, rng.integers(0, 2048, 300)] = -np.inf
    for config in (
        SamplingConfig(top_k=int(rng.integers(1, 3000))),
        SamplingConfig(top_k=0, min_p=float(rng.uniform(0, 0.2))),
        SamplingConfig(top_k=0, temperature=float(rng.uniform(0.1, 3))),
    ):
        found = np.asarray(jax.nn.softmax(restrict(jnp.asarray(logits), rule_of(config)), axis=-1), np.float64)
        for row, probabilities in zip(logits, found, strict=True):
            # The reference breaks a tie of the k-th; here all of them are kept.
            k = config.top_k and int((row >= np.sort(row)[-min(config.top_k, 2048)]).sum())
            expected = reference_probabilities(row, dataclasses.replace(config, top_k=k))
            np.testing.assert_array_equal(probabilities > 0, expected > 0)
            np.testing.assert_allclose(probabilities, expected, rtol=1e-4)
    top_p = SamplingConfig(top_k=500, top_p=float(rng.uniform(0.1, 0.99)))
    distinct = rng.permutation(2048).astype(np.float32)[None] / 300
    kept = np.isfinite(restrict(jnp.asarray(distinct), rule_of(top_p)))
    np.testing.assert_array_equal(kept[0], reference_probabilities(distinct[0], top_p) > 0)


@pytest.mark.parametrize("config", RULES.values(), ids=RULES)
def test_codes_are_drawn_as_often_as_they_should_be(config):
    draws = 20_000
    keys = jax.random.split(jax.random.key(1), draws)
    codes = choose(keys, jnp.tile(LOGITS[:1], (draws, 1)), rule_of(config))
    assert codes.dtype == jnp.int32
    share = np.bincount(codes, minlength=16) / draws
    expected = reference_probabilities(LOGITS[0], config)
    deviation = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(share - expected) <= 5 * deviation).all()


def test_the_whole_codebook_stays_possible_with_every_restriction_off():
    logits = jnp.asarray(np.random.default_rng(3).normal(0, 6, (4, 8192)), jnp.float32)
    assert (restrict(logits, rule_of(SamplingConfig(top_k=0))) > -jnp.inf).all()


def test_top_1_is_the_best_code_and_ties_of_the_last_place_are_kept():
    rule = rule_of(SamplingConfig(top_k=1))
    codes = choose(jax.random.split(jax.random.key(0), 3), jnp.asarray(LOGITS), rule)
    np.testing.assert_array_equal(codes, LOGITS.argmax(axis=-1))
    tied = restrict(jnp.array([[1.0, 2.0, 0.0, 1.0]]), dataclasses.replace(rule, top_k=jnp.int32(2)))
    np.testing.assert_array_equal(tied > -jnp.inf, [[True, True, False, True]])


def test_guidance_is_linear_in_the_scale():
    conditional, unconditional = LOGITS[:1], LOGITS[1:2]
    for scale in (0.0, 1.0, 3.5):
        expected = unconditional.astype(np.float64) + scale * (conditional.astype(np.float64) - unconditional)
        np.testing.assert_allclose(
            guide(conditional, unconditional, jnp.float32(scale)), expected, rtol=1e-5, atol=1e-6
        )


def test_guidance_where_a_code_has_no_odds():
    infinity = np.inf
    found = guide(jnp.array([[1.0, -infinity, -infinity]]), jnp.array([[-infinity, 1.0, -infinity]]), jnp.float32(3))
    np.testing.assert_array_equal(found, [[1.0, -infinity, -infinity]])


@pytest.mark.parametrize(
    "config", [RULES["plain"], RULES["all"], SamplingConfig(top_k=15, guidance_scale=4.0)], ids=str
)
def test_a_code_without_odds_is_never_drawn(config):
    logits = LOGITS[:1].copy()
    logits[0, 3:] = -np.inf
    codes = choose(jax.random.split(jax.random.key(4), 5000), jnp.tile(logits, (5000, 1)), rule_of(config))
    assert set(np.unique(codes)) <= {0, 1, 2}


def test_the_repetition_guard_divides_the_odds_of_one_code_and_leaves_the_others():
    penalty = jnp.float32(4.0)
    for shift in (0.0, -100.0):  # wherever the scores' zero lies
        found = jax.nn.softmax(discourage(jnp.asarray(LOGITS + shift), jnp.array([5, -1, 0]), penalty), axis=-1)
        odds = np.exp(LOGITS.astype(np.float64))
        odds[0, 5] /= 4
        odds[2, 0] /= 4
        np.testing.assert_allclose(found, odds / odds.sum(axis=-1, keepdims=True), rtol=1e-4)
    np.testing.assert_array_equal(discourage(jnp.asarray(LOGITS), jnp.array([5, -1, 0]), jnp.float32(1)), LOGITS)


def test_a_row_with_its_key_is_drawn_alike_in_any_batch():
    rule, keys = rule_of(RULES["all"]), jax.random.split(jax.random.key(2), 3)
    together = choose(keys, jnp.asarray(LOGITS), rule)
    for row in range(3):
        assert choose(keys[row : row + 1], jnp.asarray(LOGITS[row : row + 1]), rule)[0] == together[row]


def test_changing_a_rule_compiles_nothing():
    compiled, keys = jax.jit(choose), jax.random.split(jax.random.key(0), 3)
    for config in RULES.values():
        compiled(keys, jnp.asarray(LOGITS), rule_of(config))
    assert compiled._cache_size() == 1


def test_a_schedule_holds_its_last_value():
    config = SamplingConfig(
        temperature=(1.0, 0.5),
        top_k=(400, 100, 20),
        guidance_scale=3.0,
        continuation_temperature=0.25,
        continuation_guidance_scale=(2.0, 1.0),
    )
    found = {
        is_continuing: [
            (float(rule.temperature), int(rule.top_k), float(rule.top_p), float(rule.guidance_scale))
            for rule in rules_of(config, is_continuing, 4)
        ]
        for is_continuing in (False, True)
    }
    assert found[False] == [(1.0, 400, 1.0, 3.0), (0.5, 100, 1.0, 3.0), (0.5, 20, 1.0, 3.0), (0.5, 20, 1.0, 3.0)]
    assert found[True] == [(0.25, 400, 1.0, 2.0), (0.25, 100, 1.0, 1.0), (0.25, 20, 1.0, 1.0), (0.25, 20, 1.0, 1.0)]
    shapes = {jax.tree.map(jnp.shape, rule) for rule in rules_of(config, False, 4)}
    assert len(shapes) == 1
