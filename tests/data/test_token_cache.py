"""The cache of ids: complete or resumable, never of another tokenizer."""

import dataclasses
import json
import resource

import numpy as np
import pytest

from loong_jax.data.bad_media import BadMedia
from loong_jax.data.token_cache import CacheMeta, TokenCache, TokenCacheWriter, TokenExample

META = CacheMeta(
    fingerprint="abc",
    text_fingerprint="words",
    source={"name": "digits", "fps": 6.5},
    num_examples=7,
    grid=(2, 3, 3),
    num_codes=512,
    fps=6.5,
    shard_size=3,
)
CODES = np.random.default_rng(0).integers(0, 512, (7, 2, 3, 3))
EXAMPLES = [TokenExample(CODES[i], [i, 2 * i, 31_999], f"é{i}.mp4#{i}") for i in range(7)]


def _fill(writer: TokenCacheWriter, **process) -> None:
    for shard, places in writer.missing_shards(**process):
        writer.write(shard, [EXAMPLES[place] for place in places])


def test_round_trip(tmp_path):
    _fill(TokenCacheWriter(tmp_path / "a" / "cache", META))
    cache = TokenCache(tmp_path / "a" / "cache", "abc", "words")
    assert len(cache) == 7 and cache.meta == META
    for index in (6, 0, 3, 2):
        np.testing.assert_array_equal(cache[index]["codes"], CODES[index])
        assert cache[index]["text_ids"] == [index, 2 * index, 31_999] and cache[index]["key"] == f"é{index}.mp4#{index}"
    for index in (-1, 7):
        with pytest.raises(IndexError):
            cache[index]


def test_large_codebooks_keep_their_ids(tmp_path):
    meta = dataclasses.replace(META, num_codes=2**18, num_examples=1)
    codes = np.random.default_rng(0).integers(2**16, 2**18, (2, 3, 3))
    TokenCacheWriter(tmp_path, meta).write(0, [TokenExample(codes, [1], "a#0")])
    np.testing.assert_array_equal(TokenCache(tmp_path)[0]["codes"], codes)


def test_a_kill_costs_one_shard(tmp_path):
    writer = TokenCacheWriter(tmp_path, META)
    assert writer.missing_shards() == [(0, range(0, 3)), (1, range(3, 6)), (2, range(6, 7))]
    writer.write(0, EXAMPLES[:3])
    writer.write(2, EXAMPLES[6:])
    # Killed while shard 1 was written: a half-written file lies about.
    whole = (tmp_path / "tokens-00000-of-00003.array_record").read_bytes()
    (tmp_path / "tokens-00001-of-00003.tmp").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="lacks 1 shards"):
        TokenCache(tmp_path)
    resumed = TokenCacheWriter(tmp_path, META)
    assert resumed.missing_shards() == [(1, range(3, 6))]
    _fill(resumed)
    cache = TokenCache(tmp_path)
    np.testing.assert_array_equal([cache[i]["codes"] for i in range(7)], CODES)


def test_a_full_disk_is_said_and_costs_one_shard(tmp_path):
    """By a limit on the size of this process's files."""
    writer, limits = TokenCacheWriter(tmp_path, META), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"tokens-00000-of-00003.* could not be written .*File too large.*the same com"
        ):
            _fill(writer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["meta.json"]
    _fill(writer)
    np.testing.assert_array_equal(TokenCache(tmp_path)[6]["codes"], CODES[6])


def test_hosts_write_shards_of_their_own(tmp_path):
    writers = [TokenCacheWriter(tmp_path, META) for _ in range(2)]
    shares = [writer.missing_shards(index, 2) for index, writer in enumerate(writers)]
    assert [[shard for shard, _ in share] for share in shares] == [[0, 2], [1]]
    for index, writer in enumerate(writers):
        _fill(writer, process_index=index, process_count=2)
    np.testing.assert_array_equal([TokenCache(tmp_path)[i]["codes"] for i in range(7)], CODES)


@pytest.mark.filterwarnings("ignore:.*bad media are passed over")
def test_a_damaged_record_is_passed_over_and_counted(tmp_path):
    _fill(TokenCacheWriter(tmp_path, META))
    shard = tmp_path / "tokens-00001-of-00003.array_record"
    content = bytearray(shard.read_bytes())
    place = content.index("é4.mp4".encode())
    content[place : place + 4] = bytes(4)
    shard.write_bytes(content)
    bad = BadMedia("tokens", 1.0)
    keys = [TokenCache(tmp_path, bad=bad)[i]["key"] for i in range(7)]
    assert bad.counts == {"damaged record": 1}
    for index, key in enumerate(keys):
        assert (key == f"é{index}.mp4#{index}") == (index != 4)


def test_a_shard_of_another_tokenizer_is_refused(tmp_path):
    for folder, meta in (("a", META), ("b", CacheMeta(**vars(META) | {"fingerprint": "xyz"}))):
        _fill(TokenCacheWriter(tmp_path / folder, meta))
    name = "tokens-00001-of-00003.array_record"
    (tmp_path / "b" / name).replace(tmp_path / "a" / name)
    cache = TokenCache(tmp_path / "a", "abc")
    assert cache[0]["key"] == "é0.mp4#0"
    with pytest.raises(ValueError, match=f"{name} was made by tokenizer xyz, the others by abc"):
        cache[3]
    (tmp_path / "a" / name).write_bytes(b"no record")
    with pytest.raises(ValueError, match="has a damaged shard|has 4 records instead of 7"):
        TokenCache(tmp_path / "a")


def test_another_tokenizer_is_refused_by_name(tmp_path):
    _fill(TokenCacheWriter(tmp_path, META))
    with pytest.raises(ValueError, match=r"made by tokenizer abc, not by xyz"):
        TokenCache(tmp_path, "xyz")
    with pytest.raises(ValueError, match=r"made by text tokenizer words, not by signs"):
        TokenCache(tmp_path, "abc", "signs")
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
    with pytest.raises(ValueError, match="00000-of-00003.* holds 3 examples .* got 2"):
        writer.write(0, EXAMPLES[:2])
    with pytest.raises(ValueError, match=r"holds 3 examples with codes \(2, 3, 3\); got 3 with \[\(1, 3, 3\)\]"):
        writer.write(0, [TokenExample(CODES[0, :1], [], "")] * 3)
    with pytest.raises(ValueError, match=r"\[0, 512\); got .* to 512"):
        writer.write(0, [TokenExample(np.full((2, 3, 3), 512), [], "")] * 3)
    assert len(writer.missing_shards()) == 3
