"""The public pipeline: prompts in, videos out, round after round."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from loong_jax import sharding
from loong_jax.config import (
    DEBUG_TOKENIZER,
    DEBUG_TRANSFORMER,
    ConfigError,
    DataConfig,
    DecodingConfig,
    LanguageModelJob,
    SamplingConfig,
)
from loong_jax.data.sequences import prompt_ids
from loong_jax.models import transformer
from loong_jax.pipeline import Pipeline
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.vocab import Vocabulary

JOB = LanguageModelJob(
    model=dataclasses.replace(DEBUG_TRANSFORMER, max_length=128),
    data=DataConfig(frame_size=32, num_frames=17, max_text_ids=8),
)
CLIP = 17 / 6.5  # seconds
SECONDS = 29 / 6.5  # a clip of 17 frames, and a round that keeps 5 and adds 12
PROMPT = "a red 7 moves left"


@pytest.fixture(scope="module")
def pipe_on_a_mesh():
    """On eight devices."""
    tokenizer = VideoTokenizer.untrained(DEBUG_TOKENIZER)
    # Large weights, so that the next id depends on those before it.
    params = jax.tree.map(lambda p: p if p.ndim == 1 else 10 * p, transformer.init_params(JOB.model, jax.random.key(0)))
    return Pipeline(JOB, params, tokenizer)


@pytest.fixture(scope="module")
def pipe(pipe_on_a_mesh):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
        return Pipeline(JOB, pipe_on_a_mesh.params, pipe_on_a_mesh.generator.tokenizer)


def compilations(pipe) -> list[tuple[int, int]]:
    """Of every decoder's two functions."""
    decoders = pipe.generator._decoders.values()
    return [(decoder.prefill._cache_size(), decoder.decode._cache_size()) for decoder in decoders]


def test_a_model_is_sampled_as_its_training_says(pipe):
    sampling = SamplingConfig(seconds=CLIP, temperature=0.5, top_k=3, decoding=DecodingConfig(parallel_ids=8))
    own = dataclasses.replace(JOB, sampling=sampling)
    own = Pipeline(own, pipe.params, pipe.generator.tokenizer)
    assert own.job.sampling.decoding.parallel_ids == 8 and own.sampling.decoding == DecodingConfig()  # of this machine
    assert own.request(PROMPT).sampling == own.sampling and own.request(PROMPT).num_frames == 17
    changed = own.request(PROMPT, top_k=(5, 2)).sampling
    assert changed == dataclasses.replace(own.sampling, top_k=(5, 2))


def test_frames_come_as_they_are_ready_and_add_up_to_the_video(pipe):
    parts = list(pipe.stream(PROMPT, seed=3, seconds=SECONDS))
    assert [part.shape for part in parts] == [(1, 32, 32, 3)] + 7 * [(4, 32, 32, 3)]
    assert all(part.dtype == np.uint8 for part in parts)
    video = pipe(PROMPT, seed=3, seconds=SECONDS)
    np.testing.assert_array_equal(np.concatenate(parts), video)
    # A shorter video is the beginning of a longer one.
    np.testing.assert_array_equal(pipe(PROMPT, seed=3, seconds=23 / 6.5), video[:23])


def test_the_first_frame_comes_before_the_second_latent_frame_is_decoded(pipe, monkeypatch):
    asked = []
    start = VideoTokenizer.start_decoding
    monkeypatch.setattr(VideoTokenizer, "start_decoding", lambda *args: asked.append(1) or start(*args))
    frames = pipe.stream(PROMPT, seconds=SECONDS)
    assert asked == [] and len(next(frames)) == 1 and asked == [1]
    assert len(next(frames)) == 4 and asked == [1, 1]


def test_a_stream_that_is_left_does_not_disturb_another(pipe):
    expected = pipe(PROMPT, seed=1, seconds=SECONDS)
    one, other = (pipe.stream(PROMPT, seed=seed, seconds=SECONDS) for seed in (1, 2))
    found = [frames for frames, _ in zip(one, other, strict=True)]
    np.testing.assert_array_equal(np.concatenate(found), expected)


def test_one_compilation_for_prompts_lengths_and_ways_to_start(pipe):
    """Prefill has one for prompts alone, and one for those that latent frames follow."""
    pipe(PROMPT, seconds=SECONDS)
    before = compilations(pipe)
    pipe("a blue 3", seconds=1, temperature=2.0, top_k=(7, 3))
    pipe([(0, "a blue 3"), (1, "a red 7")], seconds=SECONDS, continuation="ids")
    pipe(PROMPT, seconds=SECONDS, continuation="anchor", image=np.zeros((32, 32, 3), np.uint8))
    assert compilations(pipe) == before and (2, 1) in before and not set(before) - {(0, 0), (1, 1), (2, 1)}


def test_a_round_starts_from_the_last_frames_encoded_again(pipe):
    """Going on from the frames of the first round alone gives the second: nothing else is carried over."""
    video = pipe(PROMPT, seconds=SECONDS, top_k=1)
    first, second = video[:17], video[17:]
    again = pipe(PROMPT, video=first, seconds=CLIP, top_k=1)
    np.testing.assert_array_equal(again[:5], first[-5:])
    np.testing.assert_array_equal(again[5:], second)
    for more in (1, 2, 3):  # frames beyond the last whole latent frame
        cut = pipe(PROMPT, video=video[: 17 + more], seconds=CLIP, top_k=1)
        np.testing.assert_array_equal(cut, again)
    other = pipe(PROMPT, video=np.zeros_like(first), seconds=CLIP, top_k=1)
    assert (other[5:] != second).any() and not other[:5].any()


def test_a_window_reads_as_much_of_a_given_video_as_it_keeps(pipe):
    video = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), np.uint8)
    options = dict(continuation="window", window_latents=2, sink_latents=1)
    np.testing.assert_array_equal(pipe.request(PROMPT, video=video, **options).start[0], video[20:29])  # whole ones
    np.testing.assert_array_equal(pipe.request(PROMPT, video=video).start[0], video[24:29])
    assert pipe(PROMPT, video=video, seconds=CLIP, **options).shape[0] == 17


@pytest.mark.parametrize("continuation", ["reencode", "anchor", "ids", "window"])
def test_what_a_round_starts_from(continuation, pipe):
    """The second and third rounds, made by hand from the ids and frames before them; a clip has 5 latent frames."""
    options = dict(seconds=43 / 6.5, top_k=1, continuation=continuation, window_latents=2)
    generator, request = pipe.generator, pipe.request(PROMPT, **options)
    pieces = list(generator.roll_out(request))
    ids, frames = np.concatenate([p.ids for p in pieces]), np.concatenate([p.frames[0] for p in pieces])
    encode, decode = generator.tokenizer.encode, generator.tokenizer.decode
    assert len(frames) == 43 and ids.shape == (12, 4, 4)
    shown = 17
    for first in (5, 8) if continuation != "window" else (5, 7, 9):
        if continuation == "reencode":
            known = encode(frames[shown - 5 : shown])
        elif continuation == "anchor":
            known = encode(np.concatenate([frames[:1], frames[shown - 4 : shown]]))
        elif continuation == "ids":
            known = ids[first - 2 : first]
        else:
            known = ids[[0, first - 2, first - 1]]
        clip = generator._clip_sampler(request).sample(
            request.texts[0], known[None], [jax.random.key(0)], 5 - len(known)
        )
        new = np.concatenate([np.asarray(frame) for frame in clip])[: len(ids) - first]
        np.testing.assert_array_equal(ids[first : first + len(new)], new)
        if continuation in ("reencode", "anchor"):
            clip = decode(np.concatenate([known, new]))[5:]
            np.testing.assert_array_equal(frames[shown : shown + len(clip)], clip)
        shown += 4 * len(new)
    if continuation in ("ids", "window"):
        np.testing.assert_allclose(frames.astype(int), decode(ids)[:43], atol=1)


def test_rounds_that_continue_have_rules_of_their_own(pipe):
    """A first clip at random, then rounds that always take the likeliest id: another seed may only change the first."""
    options = dict(seconds=SECONDS, temperature=2.0, continuation_temperature=1e-6)
    video = pipe(PROMPT, seed=1, **options)
    assert (video[:17] != pipe(PROMPT, seed=2, seconds=CLIP, temperature=2.0)).any()
    greedy = pipe(PROMPT, video=video[:17], seconds=CLIP, top_k=1)
    np.testing.assert_array_equal(video[17:], greedy[5:])
    guided = pipe(PROMPT, seed=1, **options, continuation_guidance_scale=8.0)
    assert (guided[17:] != video[17:]).any()


def test_a_text_holds_from_its_second_on(pipe):
    """Up to there the video is that of the first text, then what the second makes of its last frames."""
    script = [(0, PROMPT), (9 / 6.5, "a blue 3 moves up")]
    video = pipe(script, seconds=20 / 6.5, top_k=1)
    np.testing.assert_array_equal(video[:9], pipe(PROMPT, seconds=9 / 6.5, top_k=1))
    following = pipe("a blue 3 moves up", video=video[:9], seconds=16 / 6.5, top_k=1)
    np.testing.assert_array_equal(video[9:], following[5:])
    assert (video != pipe(PROMPT, seconds=20 / 6.5, top_k=1)).any()
    both = pipe([script, [(0, "a green 1"), (9 / 6.5, "a red 2")]], seconds=20 / 6.5, top_k=1)
    np.testing.assert_allclose(both[0].astype(int), video.astype(int), atol=1)


@pytest.mark.parametrize("continuation", ["reencode", "anchor", "ids", "window"])
def test_after_a_cut_nothing_is_known_of_the_frames_before(pipe, continuation):
    options = dict(top_k=1, continuation=continuation, window_latents=2)
    script = [(0, PROMPT), (9 / 6.5, "a blue 3 moves up")]
    video = pipe(script, seconds=33 / 6.5, text_change="cut", **options)
    np.testing.assert_array_equal(video[:9], pipe(PROMPT, seconds=9 / 6.5, **options))
    np.testing.assert_array_equal(video[9:], pipe("a blue 3 moves up", seconds=24 / 6.5, **options))
    assert (video != pipe(script, seconds=33 / 6.5, **options)).any()


@pytest.mark.slow
def test_of_several_candidates_the_likeliest_is_kept(pipe):
    """Against each candidate by itself, scored by the model's forward pass of the whole clip; with guidance."""
    options = dict(seconds=CLIP, temperature=1.5, guidance_scale=2.0)
    request = pipe.request([PROMPT, "a blue 3"], **options)
    keys = [[jax.random.fold_in(jax.random.key(seed), 2**24 * candidate) for seed in (0, 1)] for candidate in range(3)]
    sampler = pipe.generator._clip_sampler(request)
    alone = [np.stack(list(sampler.sample(request.texts[0], None, of, 5)), axis=1) for of in keys]
    scores = np.stack([likelihoods(pipe, request.texts[0], codes) for codes in alone])
    found = pipe.generator.roll_out(pipe.request([PROMPT, "a blue 3"], **options, candidates=3))
    found = np.stack([piece.ids for piece in found], axis=1)
    for video, best in enumerate(scores.argmax(axis=0)):
        np.testing.assert_array_equal(found[video], alone[best][video])
    assert len(set(scores.argmax(axis=0))) == 2  # not always the same one


def forward_logits(pipe, text, ids) -> np.ndarray:
    """Scores [ids, codes] at the place of each of the ids of a clip, of one forward pass of all of it."""
    model = nnx.merge(transformer.abstract_params(JOB.model)[0], pipe.params)

    @jax.jit
    def video_logits(tokens):
        return model.logits(model.hidden(tokens, jnp.arange(tokens.shape[1])[None], None), 32000, 32064)[0]

    sequence = np.concatenate([prompt_ids(text, Vocabulary(32000, 64)), 32000 + ids])[None]
    return np.asarray(video_logits(sequence), np.float64)[-len(ids) - 1 : -1]


def likelihoods(pipe, texts, codes) -> np.ndarray:
    """Log-likelihood of the codes of each video after its text."""
    scores = []
    for text, ids in zip(texts, codes.reshape(len(codes), -1), strict=True):
        logits = forward_logits(pipe, text, ids)
        scores.append((logits[np.arange(len(ids)), ids] - np.logaddexp.reduce(logits, axis=1)).sum())
    return np.array(scores)


def test_a_negative_prompt_takes_the_place_of_the_null_text(pipe):
    options = dict(seconds=1, top_k=1, guidance_scale=4.0)
    plain = pipe(PROMPT, **options)
    assert (pipe(PROMPT, negative_prompt="a blue 3", **options) != plain).any()
    # Away from the prompt itself there is nothing to guide to.
    same = pipe(PROMPT, negative_prompt=PROMPT, **options)
    np.testing.assert_array_equal(same, pipe(PROMPT, seconds=1, top_k=1))


def test_a_video_does_not_depend_on_its_batch_nor_on_the_devices(pipe, pipe_on_a_mesh):
    alone = pipe("a blue 3 moves up", seed=8, seconds=SECONDS)
    both = pipe_on_a_mesh([PROMPT, "a blue 3 moves up"], seed=7, seconds=SECONDS)
    assert both.shape == (2, 29, 32, 32, 3) and (both[0] != both[1]).any()
    # The same ids; sums of another batch size are rounded otherwise.
    np.testing.assert_allclose(both[1].astype(int), alone.astype(int), atol=1)


def test_a_fingerprint_is_the_models_and_not_its_devices(pipe, make_mesh):
    sharded = jax.device_put(
        pipe.params,
        sharding.tree_shardings(make_mesh(fsdp=4, tensor=2), pipe.params, transformer.logical_axes(JOB.model)),
    )
    assert pipe.fingerprint == Pipeline(JOB, sharded, pipe.generator.tokenizer).fingerprint
    other = jax.tree.map(lambda p: p * 1.001, pipe.params)
    assert Pipeline(JOB, other, pipe.generator.tokenizer).fingerprint != pipe.fingerprint


def test_an_image_is_the_first_frame(pipe):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    video = pipe(PROMPT, image=image, seconds=1)
    assert len(video) == round(6.5)
    np.testing.assert_array_equal(video[0], image)


@pytest.mark.parametrize("options", [{}, dict(continuation="window", window_latents=2, sink_latents=1)])
def test_what_starts_from_an_image_sees_all_of_its_clip(options, pipe):
    """A round may start from fewer latent frames than there is room for, and has as many more to sample."""
    image = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    request = pipe.request(PROMPT, image=image, seconds=CLIP, top_k=1, guidance_scale=1.0, **options)
    sampled = np.stack([piece.ids for piece in pipe.generator.roll_out(request)], axis=1).reshape(-1)
    known = pipe.tokenizer.encode(image[None]).reshape(-1)
    logits = forward_logits(pipe, request.texts[0][0], np.concatenate([known, sampled]))
    np.testing.assert_array_equal(sampled, logits[len(known) :].argmax(axis=1))


def test_a_prompt_that_is_not_read_to_its_end_says_so(pipe):
    with pytest.warns(UserWarning, match="reads the first 8"):
        pipe("a red 7 that moves very slowly to the left and then, perhaps, back again", seconds=1)


def test_a_prompt_is_read_without_its_line_breaks(pipe):
    assert pipe.request("a red  7\nmoves left ").texts == pipe.request("a red 7 moves left").texts


@pytest.mark.parametrize(
    ("script", "unseen"),
    [
        ([(0, "a"), (2, "b"), (2.4, "c")], "'b' holds from 2 s on for 3 frames, and may not be seen: give it 0.62 s"),
        ([(0, "a"), (0.05, "b")], "'a' holds from 0 s on for 0 frames"),
        ([(0, "a"), (2.9, "b")], "'b' holds from 2.9 s on for 1 frames"),
        ([(0, "a"), (4, "b")], "is to change at 4 s, and the video ends at 3 s"),
    ],
)
def test_a_text_that_may_not_be_seen_is_said(script, unseen, pipe):
    with pytest.warns(UserWarning, match=unseen):
        pipe.request(script, seconds=3)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "must be some text"),
        ([], {}, "must be one or more"),
        ([None], {}, "must be some text"),
        ([(1, "a 7")], {}, "begin with 0 and grow"),
        ([(0, "a 7"), (0, "a 3")], {}, "begin with 0 and grow"),
        ([(0, "a 7"), (float("nan"), "a 3")], {}, "begin with 0 and grow"),
        ([(0, "a 7"), (2, " ")], {}, "must be some text"),
        (["a 7", [(0, "a 7"), (2, "a 3")]], {}, "change at the same seconds"),
        ("a 7", {"secs": 1}, "secs is not a sampling option: use .*seconds"),
        ("a 7", {"seconds": 0}, "seconds=0"),
        ("a 7", {"reencode_frames": 17}, "reencode_frames=17 leaves no room"),
        ("a 7", {"reencode_frames": 6}, "1 [+] a multiple of 4"),
        ("a 7", {"continuation": "window"}, "window_latents=8, 9 latent frames, leave no room"),
        ("a 7", {"negative_prompt": "a 3"}, "needs a guidance_scale above 1"),
        ("a 7", {"image": np.zeros((16, 16, 3), np.uint8)}, "model's frames are uint8"),
        ("a 7", {"image": np.zeros((32, 32, 3))}, "got float64"),
        ("a 7", {"image": np.zeros((32, 32, 3), np.uint8), "video": np.zeros((5, 32, 32, 3), np.uint8)}, "not both"),
    ],
)
def test_what_cannot_be_sampled_is_refused(pipe, prompt, options, message):
    with pytest.raises((ValueError, ConfigError), match=message):
        pipe.stream(prompt, **options)


def test_a_clip_longer_than_the_model_was_made_for_is_refused():
    job = dataclasses.replace(JOB, model=dataclasses.replace(JOB.model, max_length=80))
    pipe = Pipeline(job, None, VideoTokenizer(DEBUG_TOKENIZER, None))
    with pytest.raises(ConfigError, match="need 91 places, but the model was made for 80"):
        pipe.stream(PROMPT)
