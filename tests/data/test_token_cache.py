"""The cache of ids: complete or resumable, never of another tokenizer."""

import json

import numpy as np
import pytest

from loong_jax.data.token_cache import CacheMeta, TokenCache, TokenCacheWriter

META = CacheMeta(
    fingerprint="abc",
    source={"name": "digits", "fps": 6.5},
    num_examples=7,
    grid=(2, 3, 3),
    num_codes=512,
    shard_size=3,
)
CODES = np.random.default_rng(0).integers(0, 512, (7, 2, 3, 3))
CAPTIONS = [f"caption {i} é" for i in range(7)]


def _fill(writer: TokenCacheWriter) -> None:
    for shard, examples in writer.missing_shards():
        writer.write(shard, CODES[examples.start : examples.stop], CAPTIONS[examples.start : examples.stop])


def test_round_trip(tmp_path):
    _fill(TokenCacheWriter(tmp_path / "a" / "cache", META))
    cache = TokenCache(tmp_path / "a" / "cache", "abc")
    assert len(cache) == 7 and cache.meta == META
    for index in (6, 0, 3, 2):
        np.testing.assert_array_equal(cache[index]["codes"], CODES[index])
        assert cache[index]["caption"] == CAPTIONS[index]
    for index in (-1, 7):
        with pytest.raises(IndexError):
            cache[index]


def test_a_kill_costs_one_shard(tmp_path):
    writer = TokenCacheWriter(tmp_path, META)
    assert writer.missing_shards() == [(0, range(0, 3)), (1, range(3, 6)), (2, range(6, 7))]
    writer.write(0, CODES[:3], CAPTIONS[:3])
    writer.write(2, CODES[6:], CAPTIONS[6:])
    # Killed while shard 1 was written: its codes are there, its captions are not, and a half-written file lies about.
    np.save(tmp_path / "codes_00001.npy", np.zeros((3, 2, 3, 3), np.uint16))
    (tmp_path / "captions_00001.tmp").write_text('["half')
    with pytest.raises(ValueError, match="lacks 1 shards"):
        TokenCache(tmp_path)
    resumed = TokenCacheWriter(tmp_path, META)
    assert resumed.missing_shards() == [(1, range(3, 6))]
    _fill(resumed)
    cache = TokenCache(tmp_path)
    np.testing.assert_array_equal([cache[i]["codes"] for i in range(7)], CODES)


def test_another_tokenizer_is_refused_by_name(tmp_path):
    _fill(TokenCacheWriter(tmp_path, META))
    with pytest.raises(ValueError, match=r"tokenizer abc, not by xyz"):
        TokenCache(tmp_path, "xyz")
    for change in ({"fingerprint": "xyz"}, {"source": {"name": "other"}}, {"grid": (2, 3, 4)}, {"num_examples": 8}):
        field = next(iter(change))
        with pytest.raises(ValueError, match=f"made with {field}"):
            TokenCacheWriter(tmp_path, CacheMeta(**{**vars(META), **change}))


def test_missing_and_damaged_folders(tmp_path):
    with pytest.raises(ValueError, match="is no token cache"):
        TokenCache(tmp_path / "nowhere")
    (tmp_path / "meta.json").write_text('{"fingerprint": "abc"')
    with pytest.raises(ValueError, match="meta.json is damaged"):
        TokenCache(tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps({"fingerprint": "abc", "grid": [1, 1, 1]}))
    with pytest.raises(ValueError, match="meta.json is damaged"):
        TokenCache(tmp_path)


def test_a_shard_of_the_wrong_shape_is_refused(tmp_path):
    writer = TokenCacheWriter(tmp_path, META)
    with pytest.raises(ValueError, match="Shard 0 .* got codes"):
        writer.write(0, CODES[:2], CAPTIONS[:2])
    with pytest.raises(ValueError, match="2 captions"):
        writer.write(0, CODES[:3], CAPTIONS[:2])
    with pytest.raises(ValueError, match="Shard 2"):
        writer.write(2, CODES[:3], CAPTIONS[:3])
    with pytest.raises(ValueError, match=r"\[0, 512\); got .* to 512"):
        writer.write(0, np.full((3, 2, 3, 3), 512), CAPTIONS[:3])
    assert len(writer.missing_shards()) == 3
