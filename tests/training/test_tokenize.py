"""From raw video to token shards to training: the ids and the losses are those of training from pixels."""

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from loong_jax.config import DEBUG_TOKENIZER, DataConfig, TokenizeJob, TokenizerJob, TrainConfig
from loong_jax.config_dict import from_config_dict
from loong_jax.data.sources import make_source
from loong_jax.data.token_cache import TokenCache
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.training.lm_job import train_language_model
from loong_jax.training.tokenize import run_tokenize, tokenize
from loong_jax.training.tokenizer_job import train_tokenizer
from loong_jax.video import write_video

ROOT = Path(__file__).parents[2]
FILM = Path(os.environ.get("LOONG_TEST_VIDEO_DIR", ROOT.parent / "shared" / "data" / "big_buck_bunny_128"))
DATA = DataConfig(frame_size=32, num_frames=17, num_clips=20, num_images=20, require_caption=False)
TRAIN = TrainConfig(num_steps=1, batch_size=8, log_every=1, checkpoint_every=1, eval_every=1, eval_batches=1)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Real film, or where there is none, clips of moving digits as files."""
    if FILM.is_dir():
        return FILM
    folder = tmp_path_factory.mktemp("film")
    source = make_source(DataConfig(frame_size=32, num_frames=33), "train")
    for index in range(6):
        write_video(folder / f"{index}.mp4", source[index]["video"])
    return folder


@pytest.fixture(scope="module")
def data(film):
    return dataclasses.replace(DATA, source=f"folder:{film}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A workdir with a tokenizer that was trained for a moment."""
    runs = tmp_path_factory.mktemp("runs")
    job = TokenizerJob(tokenizer=DEBUG_TOKENIZER, data=dataclasses.replace(DATA, num_frames=1), train=TRAIN)
    train_tokenizer(job, runs / "tokenizer")
    return runs


@pytest.fixture(scope="module")
def tokens(runs, data):
    run_tokenize(TokenizeJob(data=data, num_held_out=8), runs / "tokens")
    return runs / "tokens"


pytestmark = pytest.mark.filterwarnings("ignore:.*bad media are passed over")


def stage2(**changes):
    spec = importlib.util.spec_from_file_location("stage2", ROOT / "configs" / "stage2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    job = from_config_dict(module.get_config("debug"))
    data = dataclasses.replace(job.data, **changes)
    train = dataclasses.replace(job.train, num_steps=4, log_every=1)
    return dataclasses.replace(job, init_from="", allow_untrained_tokenizer=False, data=data, train=train)


def losses(workdir):
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records]


def test_the_shards_hold_the_ids_of_the_clips(runs, tokens, data):
    tokenizer = VideoTokenizer.load(runs / "tokenizer")
    cache, source = TokenCache(tokens / "train"), make_source(data, "train", num_examples=20)
    assert len(cache) == 20 and cache.meta.fingerprint == tokenizer.fingerprint and cache.meta.fps == 6.5
    for index in (0, 7, 19):
        example = source[index]
        assert cache[index]["key"] == example["key"]
        np.testing.assert_array_equal(cache[index]["codes"], tokenizer.encode(example["video"]))


@pytest.mark.slow
def test_reencoded_ids_are_those_of_the_decoded_beginning(runs, data, tmp_path):
    tokenizer = VideoTokenizer.load(runs / "tokenizer")
    cache = tokenize(tokenizer, data, "train", 20, tmp_path / "again", reencoded_frames=5)
    source = make_source(data, "train", num_examples=20)
    assert cache.meta.grid == (2, 4, 4)
    for index in (0, 19):
        decoded = tokenizer.decode(tokenizer.encode(source[index]["video"]))
        np.testing.assert_array_equal(cache[index]["codes"], tokenizer.encode(decoded)[:2])
    with pytest.raises(ValueError, match="was made with source"):
        tokenize(tokenizer, data, "train", 20, tmp_path / "again", reencoded_frames=9)


@pytest.mark.slow
def test_training_from_shards_is_training_from_pixels(runs, tokens, data):
    """Contract: the same ids, so the same losses; held-out ones too."""
    common = dict(image_share=0.0, pack=0, num_clips=20, require_caption=False)
    pixels = stage2(**common, source=data.source, cache_ids=False)
    cached = stage2(**common, source=f"tokens:{tokens}")
    kept = stage2(**common, source=data.source)
    for name, job in (("pixels", pixels), ("cached", cached), ("kept", kept)):
        train_language_model(job, runs / name)
    assert len(losses(runs / "pixels")) == 5
    np.testing.assert_allclose(losses(runs / "cached"), losses(runs / "pixels"), rtol=1e-5)
    assert losses(runs / "kept") == losses(runs / "pixels")


def test_shards_that_do_not_fit_are_refused(runs, tokens, data, tmp_path):
    with pytest.raises(ValueError, match=r"holds ids \(5, 4, 4\) of clips at 6.5 frames .* at 8 are needed"):
        train_language_model(stage2(source=f"tokens:{tokens}", fps=8.0), runs / "other_fps")
    job = dataclasses.replace(stage2(source=f"tokens:{tokens}"), allow_untrained_tokenizer=True)
    with pytest.raises(ValueError, match="was made by tokenizer .*, not by .*: its ids mean something else"):
        train_language_model(job, tmp_path / "elsewhere" / "stage2")


def test_one_clip_of_each_medium(runs, tmp_path):
    (tmp_path / "videos").mkdir()
    source = make_source(DataConfig(frame_size=32, num_frames=17), "train")
    for index in range(5):
        write_video(tmp_path / "videos" / f"{index}.mp4", source[index]["video"])
    data = dataclasses.replace(DATA, source=f"folder:{tmp_path / 'videos'}", num_clips=0, held_out_every=5)
    cache = tokenize(VideoTokenizer.load(runs / "tokenizer"), data, "train", 0, tmp_path / "cache")
    assert [cache[index]["key"] for index in range(len(cache))] == [f"{index}.mp4#0" for index in (1, 2, 3, 4)]
    with pytest.raises(ValueError, match=r"moving_digits have no number of their own: set data.num_clips"):
        tokenize(VideoTokenizer.load(runs / "tokenizer"), DATA, "train", 0, tmp_path / "digits")


@pytest.mark.slow
def test_every_device_encodes(runs, data, tmp_path):
    tokenizer = VideoTokenizer.load(runs / "tokenizer")
    one = tokenize(tokenizer, data, "train", 20, tmp_path / "one", devices=jax.devices()[:1])
    two = tokenize(tokenizer, data, "train", 20, tmp_path / "two", devices=jax.devices()[:2])
    for index in range(20):
        np.testing.assert_array_equal(one[index]["codes"], two[index]["codes"])


PROGRAM = """
import sys
from pathlib import Path
from absl import flags
if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    from loong_jax.config import DataConfig, TokenizeJob
    from loong_jax.training import tokenize
    tokenize.TokenCacheWriter.write = (lambda write: lambda self, shard, examples: (
        write(self, shard, examples), print("wrote", shard, flush=True)))(tokenize.TokenCacheWriter.write)
    data = DataConfig(frame_size=32, num_frames=5, num_clips=600)
    tokenize.run_tokenize(TokenizeJob(data=data, num_held_out=8), Path({workdir!r}))
"""


@pytest.mark.slow
def test_killed_between_shards_none_is_lost_or_doubled(runs, tmp_path):
    script, workdir = tmp_path / "run.py", runs / "killed"
    script.write_text(PROGRAM.format(workdir=str(workdir)))

    def start():
        return subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=dict(os.environ))

    with start() as process:
        wrote = [next(line for line in process.stdout if line.startswith("wrote"))]
        process.send_signal(signal.SIGKILL)
    assert wrote == ["wrote 0\n"] and not list((workdir / "train").glob("tokens-00002*.array_record"))
    before = (workdir / "train" / "tokens-00000-of-00003.array_record").stat().st_mtime_ns
    with start() as process:
        again = [line.strip() for line in process.stdout if line.startswith("wrote")]
    assert process.returncode == 0 and again[-2:] == ["wrote 2", "wrote 0"] and "wrote 0" not in again[:-1]
    assert (workdir / "train" / "tokens-00000-of-00003.array_record").stat().st_mtime_ns == before
    cache, source = TokenCache(workdir / "train"), make_source(DataConfig(frame_size=32, num_frames=5), "train")
    assert [cache[index]["key"] for index in range(600)] == [source[index]["key"] for index in range(600)]
