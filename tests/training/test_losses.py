"""The next-id loss against the same numbers worked out in float64 NumPy."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from loong_jax.config import DEBUG_TRANSFORMER, LanguageModelJob, LossConfig
from loong_jax.data.sequences import build_sequence
from loong_jax.models import transformer
from loong_jax.training import head_loss
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


def expected_loss(logits, targets, weights, frame_ids, first=0, stop=None) -> NextIdLoss:
    """By the definition: only places with a weight, only frames that are there, only columns [first, stop)."""
    weighted, frame_ids = weights > 0, np.where(weights > 0, frame_ids, -1)
    video = frame_ids >= 0
    entropy = cross_entropy(logits[..., first:stop], np.where(weighted, targets - first, 0))
    frames = [entropy[frame_ids == f].mean() if (frame_ids == f).any() else 0.0 for f in range(NUM_FRAMES)]
    return NextIdLoss(
        loss=(weights.astype(np.float64) * entropy)[weighted].sum() / weights.sum(dtype=np.float64),
        frame_loss=np.array(frames),
        accuracy=(logits[..., first:stop].argmax(-1) == targets - first)[video].mean(),
    )


class Places(NamedTuple):
    hidden: np.ndarray
    head: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    frame_ids: np.ndarray


def random_places() -> Places:
    """Four rows of ten places: text and padding without weight, frames 0, 1 and 3 (never 2), an end marker."""
    rng = np.random.default_rng(0)
    frame_ids = np.tile(np.array([-1, -1, 0, 0, 1, 1, 3, 3, -1, -1]), (4, 1))
    frame_ids[2, 6:8] = -1  # a shorter row
    weights = np.where(frame_ids >= 0, rng.choice([0.5, 1, 2, 3.5], frame_ids.shape), 0).astype(np.float32)
    weights[:, 8] = 1
    weights[1, 2:4] = 0  # a first frame that is given
    hidden = rng.normal(0, 1, (4, 10, 8)).astype(np.float32)
    head = rng.normal(0, 1.5, (8, 12)).astype(np.float32)
    best = (hidden @ head)[..., 2:9].argmax(-1) + 2
    targets = np.where(rng.random((4, 10)) < 0.4, best, rng.integers(2, 9, (4, 10)))
    targets[weights == 0] = -30  # where text is: columns that the head does not compute
    return Places(hidden, head, targets, weights, frame_ids)


def loss_of(places: Places, z_weight=0.0, total_weight=None):
    """The loss over columns 2 to 8 of 12."""
    total_weight = places.weights.sum() if total_weight is None else total_weight
    return next_id_loss(*places, columns=(2, 9), num_frames=NUM_FRAMES, total_weight=total_weight, z_weight=z_weight)


def expected_of(places: Places) -> NextIdLoss:
    logits = places.hidden.astype(np.float64) @ places.head
    return expected_loss(logits, places.targets, places.weights, places.frame_ids, 2, 9)


def assert_equal(found: NextIdLoss, expected: NextIdLoss, rtol=1e-5):
    for name, value in expected._asdict().items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=rtol, err_msg=name)


def test_every_number_is_that_of_numpy(monkeypatch):
    """Scored all together and a few at a time, where the last part is filled up."""
    places = random_places()
    expected = expected_of(places)
    assert expected.frame_loss[2] == 0 and 0 < expected.accuracy < 1
    for rows in (40, 7):
        monkeypatch.setattr(head_loss, "_ROWS", rows)
        objective, sums = jax.jit(loss_of)(places)
        assert_equal(sums.means(), expected)
        np.testing.assert_allclose(objective, expected.loss, rtol=1e-5)


def test_parts_of_a_batch_add_up_to_the_whole():
    places = random_places()
    objective, sums = loss_of(places)
    parts = []
    for rows in (slice(0, 1), slice(1, 4)):
        part = Places(*(x if x is places.head else x[rows] for x in places))
        parts.append(loss_of(part, total_weight=places.weights.sum()))
    added = jax.tree.map(lambda *values: sum(values), *parts)
    np.testing.assert_allclose(added[0], objective, rtol=1e-6)
    assert_equal(added[1].means(), sums.means())


def test_weights_count_by_their_ratio_and_change_the_loss_alone():
    places = random_places()
    found = loss_of(places)[1].means()
    assert_equal(loss_of(places._replace(weights=7 * places.weights))[1].means(), found)
    even = loss_of(places._replace(weights=(places.weights > 0).astype(np.float32)))[1].means()
    assert abs(even.loss - found.loss) > 0.01
    assert_equal(even._replace(loss=found.loss), found)


@pytest.mark.parametrize("mesh", [None, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 4, "sequence": 2}], ids=str)
def test_gradients_are_those_of_autodiff_on_every_mesh(mesh, make_mesh, monkeypatch):
    """Those worked out beside the loss against JAX's own of the plain formula, with z-loss, a part at a time."""
    monkeypatch.setattr(head_loss, "_ROWS", 3)
    places, z_weight, head = random_places(), 0.3, random_places().head

    def plain(hidden, head):
        logits = (hidden @ head)[..., 2:9]
        log_z = jax.nn.logsumexp(logits, axis=-1)
        own = jnp.clip(places.targets - 2, 0, 6)[..., None]
        entropy = log_z - jnp.take_along_axis(logits, own, axis=-1)[..., 0]
        return (places.weights * (entropy + z_weight * log_z**2)).sum() / places.weights.sum()

    def ours(hidden, head):
        return loss_of(places._replace(hidden=hidden, head=head), z_weight)[0]

    gradients = jax.value_and_grad(ours, argnums=(0, 1))
    if mesh is None:
        value, found = gradients(places.hidden, head)
    else:
        with jax.set_mesh(make_mesh(**mesh)):
            value, found = jax.jit(gradients)(places.hidden, head)
    expected_value, expected = jax.value_and_grad(plain, argnums=(0, 1))(places.hidden, head)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_the_scores_of_a_whole_batch_are_never_in_memory(monkeypatch):
    """Compiled with its gradient, the loss needs no more than a few parts' scores."""
    monkeypatch.setattr(head_loss, "_ROWS", 64)
    rows, width, columns = 4096, 8, 1024
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, rows, width), (width, columns), (1, rows))]

    def objective(hidden, head, weights):
        targets = jnp.zeros((1, rows), jnp.int32)
        return head_loss.head_loss(hidden, head, targets, weights, (0, columns))[0]

    memory = jax.jit(jax.grad(objective, argnums=(0, 1))).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.2 * rows * columns * 4


def test_a_place_without_weight_has_no_gradient():
    places = random_places()
    gradient = jax.grad(lambda hidden: loss_of(places._replace(hidden=hidden), 0.1)[0])(places.hidden)
    np.testing.assert_array_equal((gradient != 0).any(-1), places.weights > 0)


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
    found = jax.jit(make_loss(LanguageModelJob(model=model, loss=config), 3))(params, batch)[1].means()

    module = nnx.merge(transformer.abstract_params(model)[0], params)
    hidden = module.hidden(batch["tokens"], batch["positions"], batch["segment_ids"])
    logits = np.asarray(module.logits(hidden))[:, num_prompt - 1 : num_prompt + num_codes, VOCABULARY.num_text :]
    end = np.full((2, 1), VOCABULARY.special("end_video") - VOCABULARY.num_text)
    entropy = cross_entropy(logits, np.concatenate([clips.reshape(2, num_codes), end], axis=1))
    weights = np.ones(num_codes + 1)
    weights[: min(early_frames, 3) * 4] = 1 + early_weight
    np.testing.assert_allclose(found.loss, (weights * entropy).sum() / (2 * weights.sum()), rtol=1e-5)
    np.testing.assert_allclose(found.frame_loss, entropy[:, :-1].reshape(2, 3, 4).mean(axis=(0, 2)), rtol=1e-5)
