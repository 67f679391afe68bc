"""The next-id loss against the same numbers worked out in float64 NumPy."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from loong_jax.config import DEBUG_TRANSFORMER, LanguageModelJob, LossConfig
from loong_jax.data.sequences import build_sequence
from loong_jax.models import transformer
from loong_jax.training.lm_step import make_loss
from loong_jax.training.losses import NextIdLoss, next_id_loss
from loong_jax.vocab import Vocabulary

NUM_FRAMES = 4
VOCABULARY = Vocabulary(num_text=50, num_video=64)


def cross_entropy(logits, targets):
    """float64 cross-entropy, one place after the other."""
    entropy = np.zeros(targets.shape)
    for place in np.ndindex(targets.shape):
        scores = logits[place].astype(np.float64)
        entropy[place] = np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[targets[place]]
    return entropy


def expected_loss(logits, targets, weights, frame_ids) -> NextIdLoss:
    """By the definition: only places with a weight, only frames that are there."""
    weighted, video = weights > 0, frame_ids >= 0
    entropy = cross_entropy(logits, np.where(weighted, targets, 0))
    frames = [entropy[frame_ids == f].mean() if (frame_ids == f).any() else 0.0 for f in range(NUM_FRAMES)]
    return NextIdLoss(
        loss=(weights.astype(np.float64) * entropy)[weighted].sum() / weights.sum(dtype=np.float64),
        frame_loss=np.array(frames),
        accuracy=(logits.argmax(-1) == targets)[video].mean(),
    )


def random_places():
    """Three rows of ten places: text and padding without weight, frames 0, 1 and 3 (never 2), an end marker."""
    rng = np.random.default_rng(0)
    frame_ids = np.tile(np.array([-1, -1, 0, 0, 1, 1, 3, 3, -1, -1]), (3, 1))
    frame_ids[2, 6:8] = -1  # a shorter row
    weights = np.where(frame_ids >= 0, rng.choice([0.5, 1, 2, 3.5], frame_ids.shape), 0).astype(np.float32)
    weights[:, 8] = 1
    logits = rng.normal(0, 3, (3, 10, 7)).astype(np.float32)
    targets = np.where(rng.random((3, 10)) < 0.4, logits.argmax(-1), rng.integers(0, 7, (3, 10)))
    targets[weights == 0] = -30  # where text is: columns that the head does not compute
    return logits, targets, weights, frame_ids


def assert_equal(found: NextIdLoss, expected: NextIdLoss, rtol=1e-5):
    for name, value in expected._asdict().items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=rtol, err_msg=name)


def test_every_number_is_that_of_numpy():
    expected = expected_loss(*random_places())
    assert expected.frame_loss[2] == 0 and 0 < expected.accuracy < 1
    assert_equal(jax.jit(next_id_loss, static_argnums=4)(*random_places(), NUM_FRAMES), expected)


def test_weights_count_by_their_ratio_and_change_the_loss_alone():
    logits, targets, weights, frame_ids = random_places()
    found = next_id_loss(logits, targets, weights, frame_ids, NUM_FRAMES)
    assert_equal(next_id_loss(logits, targets, 7 * weights, frame_ids, NUM_FRAMES), found)
    even = next_id_loss(logits, targets, (weights > 0).astype(np.float32), frame_ids, NUM_FRAMES)
    assert abs(even.loss - found.loss) > 0.01
    assert_equal(even._replace(loss=found.loss), found)


def test_a_place_without_weight_has_no_gradient():
    logits, targets, weights, frame_ids = random_places()
    gradient = jax.grad(lambda logits: next_id_loss(logits, targets, weights, frame_ids, NUM_FRAMES).loss)(logits)
    np.testing.assert_array_equal((gradient != 0).any(-1), weights > 0)


@pytest.mark.parametrize(("early_frames", "early_weight"), [(0, 1.0), (1, 0.5), (2, 3.0), (5, 1.0)])
def test_early_frames_weigh_one_plus_lambda_in_the_loss_of_the_model(early_frames, early_weight):
    """Loong, section 3.3: each id is predicted from the ids before it, and early ones count 1 + lambda times."""
    rng, num_prompt, num_codes = np.random.default_rng(1), 5, 3 * 4
    config = LossConfig(early_frames=early_frames, early_weight=early_weight)
    clips = rng.integers(0, VOCABULARY.num_video, (2, 3, 2, 2))
    rows = [build_sequence([3, 7], codes, VOCABULARY, 20, config) for codes in clips]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    model = dataclasses.replace(DEBUG_TRANSFORMER, num_text_ids=VOCABULARY.num_text)
    params = jax.tree.map(lambda x: 4 * x, transformer.init_params(model, jax.random.key(0)))  # far from uniform
    found = jax.jit(make_loss(LanguageModelJob(model=model, loss=config), 3))(params, batch)

    module = nnx.merge(transformer.abstract_params(model)[0], params)
    hidden = module.hidden(batch["tokens"], batch["positions"], batch["segment_ids"])
    logits = np.asarray(module.logits(hidden))[:, num_prompt - 1 : num_prompt + num_codes, VOCABULARY.num_text :]
    end = np.full((2, 1), VOCABULARY.special("end_video") - VOCABULARY.num_text)
    entropy = cross_entropy(logits, np.concatenate([clips.reshape(2, num_codes), end], axis=1))
    weights = np.ones(num_codes + 1)
    weights[: min(early_frames, 3) * 4] = 1 + early_weight
    np.testing.assert_allclose(found.loss, (weights * entropy).sum() / (2 * weights.sum()), rtol=1e-5)
    np.testing.assert_allclose(found.frame_loss, entropy[:, :-1].reshape(2, 3, 4).mean(axis=(0, 2)), rtol=1e-5)
