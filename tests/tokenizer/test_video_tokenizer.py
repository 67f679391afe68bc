"""The tokenizer as users call it: what it refuses and how it says so, batches, long videos in chunks, fingerprints."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from loong_jax.config import DEBUG_TOKENIZER
from loong_jax.tokenizer.autoencoder import abstract_autoencoder
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer

SIZE, CHUNK_FRAMES = 16, 64  # pixels; pixel frames of a chunk after the first, which has one more


@pytest.fixture(scope="module")
def tokenizer():
    """Random parameters everywhere: fresh kernels ignore earlier frames, so that chunks would not need their past."""
    _, shapes = abstract_autoencoder(DEBUG_TOKENIZER)
    rng = np.random.default_rng(0)
    return VideoTokenizer(
        DEBUG_TOKENIZER, jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), shapes)
    )


def random_video(*shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, (*shape, SIZE, SIZE, 3), dtype=np.uint8)


LAYOUT = "[batch?, frames, height, width, channels]"


@pytest.mark.parametrize(
    ("video", "got", "allowed"),
    [
        (np.full((5, 16, 16, 3), 1.5, np.float32), "1.5 to 1.5", "[0, 1]"),
        (np.full((5, 16, 16, 3), np.nan, np.float32), "nan to nan", "[0, 1]"),
        (np.zeros((5, 16, 16, 3), np.int8), "int8", "uint8 or float"),
        (np.zeros((16, 16, 3), np.uint8), "(16, 16, 3)", LAYOUT),
        (np.zeros((1, 1, 5, 16, 16, 3), np.uint8), "(1, 1, 5, 16, 16, 3)", LAYOUT),
        (np.zeros((5, 16, 16, 2), np.uint8), "(5, 16, 16, 2)", "1, 3 or 4 channels"),
        (np.zeros((0, 16, 16, 3), np.uint8), "(0, 16, 16, 3)", "not empty"),
        (np.zeros((0, 5, 16, 16, 3), np.uint8), "(0, 5, 16, 16, 3)", "not empty"),
        (np.zeros((5, 0, 16, 3), np.uint8), "(5, 0, 16, 3)", "not empty"),
        (np.zeros((5, 16, 20, 3), np.uint8), "16x20", "multiples of 8"),
        (np.zeros((5, 12, 16, 3), np.uint8), "12x16", "multiples of 8"),
        ([[1, 2], [3]], "inhomogeneous", "one array"),
        (None, "object", LAYOUT),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}" if isinstance(value, np.ndarray) else "",
)
def test_a_video_that_cannot_be_encoded(tokenizer, video, got, allowed):
    with pytest.raises(ValueError) as error:
        tokenizer.encode(video)
    assert got in str(error.value) and allowed in str(error.value)


def test_float_gray_and_alpha_are_the_pixels_they_mean(tokenizer):
    video = random_video(5)
    ids = tokenizer.encode(video)
    np.testing.assert_array_equal(tokenizer.encode((video / 255).astype(np.float32)), ids)
    np.testing.assert_array_equal(tokenizer.encode(video.astype(np.float64) / 255), ids)
    opaque = np.concatenate([video, np.full_like(video[..., :1], 255)], axis=-1)
    np.testing.assert_array_equal(tokenizer.encode(opaque), ids)
    half = np.concatenate([video, np.full_like(video[..., :1], 128)], axis=-1)
    np.testing.assert_array_equal(
        tokenizer.encode(half), tokenizer.encode(np.round(video * (128 / 255)).astype(np.uint8))
    )
    gray = video[..., :1]
    np.testing.assert_array_equal(tokenizer.encode(gray), tokenizer.encode(gray.repeat(3, axis=-1)))


@pytest.mark.parametrize("frames", [2, 4, 8])
def test_missing_frames_repeat_the_last_one_and_are_cut_off_again(tokenizer, frames):
    video = random_video(frames)
    padded = np.concatenate([video, video[-1:].repeat(-(frames - 1) % 4, axis=0)])
    ids = tokenizer.encode(video)
    np.testing.assert_array_equal(ids, tokenizer.encode(padded))
    np.testing.assert_array_equal(tokenizer.decode(ids, frames), tokenizer.decode(ids)[:frames])
    for wrong in (0, len(padded) + 1):
        with pytest.raises(ValueError, match=f"1 to {len(padded)} frames; num_frames is {wrong}"):
            tokenizer.decode(ids, wrong)


ONE_BY_ONE = pytest.param([1] * 23, marks=pytest.mark.slow)


@pytest.mark.parametrize("sizes", [ONE_BY_ONE, [2, 3, 18], [23], [7, 16]], ids=str)
def test_a_stream_in_pieces_of_any_size_is_the_whole(tokenizer, sizes):
    """One frame at a time, and sizes that no chunk of the model has."""
    video = random_video(23)
    ids = tokenizer.encode(video)
    pieces = np.split(video, np.cumsum(sizes)[:-1])
    parts = list(tokenizer.encode_stream(pieces))
    np.testing.assert_array_equal(np.concatenate(parts), ids)
    frames = list(tokenizer.decode_stream(parts))
    np.testing.assert_allclose(np.concatenate(frames).astype(int), tokenizer.decode(ids).astype(int), atol=1)


def test_a_stream_yields_ids_as_soon_as_it_can_and_says_what_does_not_fit(tokenizer):
    stream = tokenizer.encode_stream(iter([random_video(1), random_video(3), random_video(1)]))
    assert next(stream).shape == (1, 2, 2)
    assert next(stream).shape == (1, 2, 2)
    other = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(
        ValueError, match=r"one batch, height and width: got \(1, 1, 8, 8, 3\) after \(1, 0, 16, 16, 3\)"
    ):
        list(tokenizer.encode_stream([random_video(1), other]))
    assert list(tokenizer.encode_stream([])) == []


def test_the_last_frames_are_decoded_from_their_ids_and_what_was_remembered(tokenizer):
    ids = tokenizer.encode(random_video(1, 33))
    _, past = tokenizer.decode_chunk(ids[:, :7])
    last, _ = tokenizer.decode_chunk(ids[:, 7:], past)
    np.testing.assert_allclose(last.astype(int), tokenizer.decode(ids)[:, -8:].astype(int), atol=1)


@pytest.mark.slow
def test_frames_larger_than_those_trained_on_are_cut_into_tiles_that_join_unseen(tokenizer):
    tiled = VideoTokenizer(DEBUG_TOKENIZER, tokenizer.params, frame_size=32)
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(tiled.encode(small), tokenizer.encode(small))
    # Periodic in a tile's stride of 24 pixels: every tile sees the same picture.
    video = np.tile(rng.integers(0, 256, (5, 24, 24, 3), dtype=np.uint8), (1, 4, 4, 1))[:, :80, :80]
    ids = tiled.encode(video)
    tile = tiled.encode(video[:, :32, :32])
    assert ids.shape == (2, 10, 10)
    np.testing.assert_array_equal(ids[:, :3, :3], tile[:, :3, :3])
    np.testing.assert_array_equal(ids[:, 7:, 7:], tile[:, 1:, 1:])
    np.testing.assert_array_equal(ids[:, 1:4, 1:4], ids[:, 4:7, 4:7])
    pixels = tiled.decode(ids)
    assert pixels.shape == (5, 80, 80, 3)
    np.testing.assert_allclose(pixels[:, :24, :24], tiled.decode(ids[:, :4, :4])[:, :24, :24], atol=1)
    streamed = np.concatenate(list(tiled.decode_stream([ids[:1], ids[1:]])))
    np.testing.assert_allclose(streamed.astype(int), pixels.astype(int), atol=1)
    np.testing.assert_array_equal(np.concatenate(list(tiled.encode_stream([video[:2], video[2:]]))), ids)


@pytest.mark.parametrize(
    ("ids", "got", "allowed"),
    [
        (np.zeros((2, 2, 2), np.float32), "float32", "integers"),
        (np.zeros((2, 2, 2), bool), "bool", "integers"),
        (np.zeros((2, 2), np.int32), "(2, 2)", "[batch?, latent_frames, h, w]"),
        (np.zeros((1, 1, 2, 2, 2), np.int32), "(1, 1, 2, 2, 2)", "[batch?, latent_frames, h, w]"),
        (np.zeros((0, 2, 2), np.int32), "(0, 2, 2)", "not empty"),
        (np.full((2, 2, 2), 64), "64 to 64", "[0, 64)"),
        (np.arange(-1, 7).reshape(2, 2, 2), "-1 to 6", "[0, 64)"),
        (np.full((2, 2, 2), 2**32), f"{2**32} to {2**32}", "[0, 64)"),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}" if isinstance(value, np.ndarray) else "",
)
def test_ids_that_cannot_be_decoded(tokenizer, ids, got, allowed):
    with pytest.raises(ValueError) as error:
        tokenizer.decode(ids)
    assert got in str(error.value) and allowed in str(error.value)


def test_a_batch_is_its_videos(tokenizer):
    videos = random_video(2, 9)
    ids = tokenizer.encode(videos)
    assert ids.shape == (2, 3, SIZE // 8, SIZE // 8) and ids.dtype == np.int32
    assert 0 <= ids.min() and ids.max() < 64 and len(np.unique(ids)) > 5
    np.testing.assert_array_equal(tokenizer.encode(videos[1]), ids[1])
    decoded = tokenizer.decode(ids)
    assert decoded.shape == videos.shape and decoded.dtype == np.uint8
    assert decoded.std() > 1
    alone = tokenizer.decode(ids[1].astype(np.uint8))
    np.testing.assert_allclose(alone.astype(int), decoded[1].astype(int), atol=1)


def test_a_long_video_in_chunks_is_the_whole(tokenizer, monkeypatch):
    video = random_video(1 + 2 * CHUNK_FRAMES + 8)
    calls = []
    for name in ("_encode", "_decode"):
        function = getattr(tokenizer, name)

        def recorded(params, frames, past, function=function):
            calls.append((frames.shape[1], str(frames.dtype)))
            return function(params, frames, past)

        monkeypatch.setattr(tokenizer, name, recorded)
    ids = tokenizer.encode(video)
    pixels = tokenizer.decode(ids.astype(np.int64))
    # Of one type, whatever came in: another would be compiled anew.
    assert calls == [(n, "uint8") for n in (65, 64, 8)] + [(n, "int32") for n in (17, 16, 2)]

    graphdef, _ = abstract_autoencoder(DEBUG_TOKENIZER)
    model = nnx.merge(graphdef, tokenizer.params)
    whole, _ = jax.jit(lambda model, video: model.encode(video))(model, video[None].astype(np.float32) / 127.5 - 1)
    np.testing.assert_array_equal(ids, np.asarray(whole)[0])
    assert len(np.unique(ids)) > 10
    whole, _ = jax.jit(lambda model, ids: model.decode(ids))(model, ids[None])
    whole = np.clip((np.asarray(whole, np.float64)[0] + 1) * 127.5, 0, 255)
    assert whole.std() > 1
    assert np.abs(pixels - whole).max() <= 0.51  # rounded to the nearest


def test_the_fingerprint_is_of_parameters_and_config_alone(tokenizer, make_mesh):
    fingerprint = tokenizer.fingerprint
    assert len(fingerprint) == 16
    copies = jax.tree.map(np.copy, tokenizer.params)
    backwards = {name: copies[name] for name in reversed(copies)}
    everywhere = jax.device_put(copies, jax.NamedSharding(make_mesh(fsdp=8), PartitionSpec()))
    for same in (copies, backwards, everywhere):
        assert VideoTokenizer(DEBUG_TOKENIZER, same).fingerprint == fingerprint

    seen = {fingerprint}
    leaves, structure = jax.tree.flatten(copies)
    for index, leaf in enumerate(leaves):
        changed = leaf.copy()
        changed.flat[-1] = np.nextafter(changed.flat[-1], np.inf)
        other = jax.tree.unflatten(structure, [*leaves[:index], changed, *leaves[index + 1 :]])
        seen.add(VideoTokenizer(DEBUG_TOKENIZER, other).fingerprint)
    assert len(seen) == 1 + len(leaves)
    quantizer = dataclasses.replace(DEBUG_TOKENIZER.quantizer, distance="l2")
    by_distance = VideoTokenizer(dataclasses.replace(DEBUG_TOKENIZER, quantizer=quantizer), copies)
    assert by_distance.fingerprint not in seen


def test_untrained_tokenizers_differ_by_seed():
    first, again, other = (VideoTokenizer.untrained(DEBUG_TOKENIZER, seed).fingerprint for seed in (0, 0, 1))
    assert first == again != other
