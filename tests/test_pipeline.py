"""The public pipeline: prompts in, videos out, round after round."""

import dataclasses

import jax
import numpy as np
import pytest

from loong_jax.config import DEBUG_TOKENIZER, DEBUG_TRANSFORMER, ConfigError, DataConfig, LanguageModelJob
from loong_jax.models import transformer
from loong_jax.pipeline import Pipeline
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer

JOB = LanguageModelJob(
    model=dataclasses.replace(DEBUG_TRANSFORMER, max_length=128),
    data=DataConfig(frame_size=32, num_frames=17, max_text_ids=8),
)
SECONDS = 29 / 6.5  # a clip of 17 frames, and a round that keeps 5 and adds 12
GREEDY = dict(seconds=SECONDS, top_k=1)


@pytest.fixture(scope="module")
def pipe():
    tokenizer = VideoTokenizer.untrained(DEBUG_TOKENIZER)
    # Large weights, so that the next id depends on those before it.
    params = jax.tree.map(lambda p: p if p.ndim == 1 else 10 * p, transformer.init_params(JOB.model, jax.random.key(0)))
    return Pipeline(JOB, params, tokenizer)


def test_rounds_come_as_they_are_ready_and_add_up_to_the_video(pipe):
    parts = list(pipe.stream("a red 7 moves left", seed=3, seconds=SECONDS))
    assert [part.shape for part in parts] == [(17, 32, 32, 3), (12, 32, 32, 3)]
    assert all(part.dtype == np.uint8 for part in parts)
    np.testing.assert_array_equal(np.concatenate(parts), pipe("a red 7 moves left", seed=3, seconds=SECONDS))


def test_a_round_starts_from_the_last_frames_encoded_again(pipe):
    """Going on from the frames of the first round alone gives the second: nothing else is carried over."""
    first, second = pipe.stream("a red 7 moves left", **GREEDY)
    given, following = pipe.stream("a red 7 moves left", video=first, seconds=17 / 6.5, top_k=1)
    np.testing.assert_array_equal(given, first[-5:])
    np.testing.assert_array_equal(following, second)
    [blank, other] = pipe.stream("a red 7 moves left", video=np.zeros_like(first), seconds=17 / 6.5, top_k=1)
    assert (other != second).any() and not blank.any()


def test_rounds_that_continue_have_rules_of_their_own(pipe):
    """A first clip at random, then rounds that always take the likeliest id: another seed may only change the first."""
    options = dict(seconds=SECONDS, temperature=2.0, continuation_temperature=1e-6)
    first, second = pipe.stream("a red 7 moves left", seed=1, **options)
    assert (first != pipe("a red 7 moves left", seed=2, seconds=17 / 6.5, temperature=2.0)).any()
    _, greedy = pipe.stream("a red 7 moves left", video=first, seconds=17 / 6.5, top_k=1)
    np.testing.assert_array_equal(second, greedy)
    _, guided = pipe.stream("a red 7 moves left", seed=1, **options, continuation_guidance_scale=8.0)
    assert (guided != second).any()


def test_a_video_does_not_depend_on_its_batch(pipe):
    alone = pipe("a blue 3 moves up", seed=8, seconds=SECONDS)
    both = pipe(["a red 7 moves left", "a blue 3 moves up"], seed=7, seconds=SECONDS)
    assert both.shape == (2, 29, 32, 32, 3) and (both[0] != both[1]).any()
    # The same ids; sums of another batch size are rounded otherwise.
    np.testing.assert_allclose(both[1].astype(int), alone.astype(int), atol=1)


def test_an_image_is_the_first_frame(pipe):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    video = pipe("a red 7 moves left", image=image, seconds=1)
    assert len(video) == round(6.5)
    np.testing.assert_array_equal(video[0], image)


def test_a_prompt_that_is_not_read_to_its_end_says_so(pipe):
    with pytest.warns(UserWarning, match="reads the first 8"):
        pipe("a red 7 that moves very slowly to the left and then, perhaps, back again", seconds=1)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "must be some text"),
        ([], {}, "must be some text"),
        ([None], {}, "must be some text"),
        ("a 7", {"secs": 1}, "secs is not a sampling option: use .*seconds"),
        ("a 7", {"seconds": 0}, "seconds=0"),
        ("a 7", {"reencode_frames": 17}, "reencode_frames=17 leaves no room"),
        ("a 7", {"reencode_frames": 6}, "1 [+] a multiple of 4"),
        ("a 7", {"image": np.zeros((16, 16, 3), np.uint8)}, "model's frames are uint8"),
        ("a 7", {"image": np.zeros((32, 32, 3))}, "got float64"),
        ("a 7", {"image": np.zeros((32, 32, 3), np.uint8), "video": np.zeros((5, 32, 32, 3), np.uint8)}, "not both"),
    ],
)
def test_what_cannot_be_sampled_is_refused(pipe, prompt, options, message):
    with pytest.raises((ValueError, ConfigError), match=message):
        pipe(prompt, **options)
