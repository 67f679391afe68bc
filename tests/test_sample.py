"""The sampling job: prompts in, files out as frames come; what cannot be sampled is said before anything compiles."""

import io
import sys
import warnings

import numpy as np
import pytest

from loong_jax import pipeline, sample
from loong_jax.config import (
    DEBUG_TOKENIZER,
    DEBUG_TRANSFORMER,
    DataConfig,
    LanguageModelJob,
    SampleJob,
    SamplingChanges,
    SamplingConfig,
)
from loong_jax.data.prompts import parse_prompt, read_prompts
from loong_jax.pipeline import Pipeline
from loong_jax.sample import run_sample, sample_videos
from loong_jax.sampling.long_video import Generator, Piece
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.video import write_image, write_video
from loong_jax.video_file import read_video

JOB = LanguageModelJob(model=DEBUG_TRANSFORMER, data=DataConfig(frame_size=32, num_frames=17, max_text_ids=8))
TWO_SECONDS = SamplingChanges(seconds=2.0)


def pixels(seed: int, first: int, count: int) -> np.ndarray:
    """Frames of one gray each, which say whose and which they are."""
    values = (20 * seed + 3 * np.arange(first, first + count)) % 256
    return np.broadcast_to(values.astype(np.uint8)[:, None, None, None], (count, 32, 32, 3))


@pytest.fixture
def rolled_out(monkeypatch) -> list:
    """Without a model: five frames at a time. Holds the requests."""
    calls = []

    def roll_out(self, request, saved=None):
        calls.append(request)
        given = 0 if request.start is None else request.start.shape[1]
        for first in range(given, request.num_frames, 5):
            count = min(5, request.num_frames - first)
            ids = np.zeros((len(request.seeds), 4, 4), np.int32)
            yield Piece(ids, np.stack([pixels(seed, first, count) for seed in request.seeds]))

    monkeypatch.setattr(Generator, "roll_out", roll_out)
    return calls


@pytest.fixture
def pipe(rolled_out, monkeypatch) -> Pipeline:
    pipe = Pipeline(JOB, None, VideoTokenizer(DEBUG_TOKENIZER, {}))
    monkeypatch.setattr(pipeline, "load", lambda workdir, mesh: pipe)
    return pipe


def grays(path) -> np.ndarray:
    return read_video(path).mean(axis=(1, 2, 3))


def test_every_prompt_has_its_files(pipe, rolled_out, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sample, "_REPORT_EVERY", 0.0)  # these are sampled in less,
    monkeypatch.setattr(sample, "_COMPILING", 1)  # in three parts
    (tmp_path / "prompts.txt").write_text("a red 7\n\n  a blue 3  \nein grünes Ö\n", encoding="utf-8")
    job = SampleJob(
        seed=2,
        prompts_file=str(tmp_path / "prompts.txt"),
        batch_size=2,
        outputs="mp4|gif|frames|sheet",
        sampling=TWO_SECONDS,
    )
    files = run_sample(job, tmp_path)
    assert [len(request.seeds) for request in rolled_out] == [2, 1]
    names = ["00_a_red_7_seed2", "01_a_blue_3_seed3", "02_ein_gr_nes_seed4"]
    folder = tmp_path / "samples"
    kinds = (".mp4", ".gif", ".png", "")
    assert files == [folder / f"{name}{kind}" for name in names for kind in kinds]
    assert sorted(folder.iterdir()) == sorted([*files, *(folder / f"{name}.ids" for name in names)])
    for index, name in enumerate(names):
        expected = pixels(2 + index, 0, 13)
        for kind, error in ((".mp4", 3), (".gif", 0)):
            np.testing.assert_allclose(grays(folder / f"{name}{kind}"), expected[:, 0, 0, 0], atol=error)
        frames = [read_video(path)[0] for path in sorted((folder / name).iterdir())]
        np.testing.assert_array_equal(frames, expected)
        assert read_video(folder / f"{name}.png").shape[-1] == 3
    said = capsys.readouterr().out
    assert "frames/s" in said and "ids/s" in said and "left" in said and said.count("wrote") == 12


def test_all_prompts_are_looked_at_before_the_first_is_sampled(pipe, rolled_out, tmp_path):
    with pytest.raises(ValueError, match="seconds must begin with 0 and grow"):
        run_sample(SampleJob(prompt="one|two|three|four @2s a @1s b", batch_size=2, sampling=TWO_SECONDS), tmp_path)
    assert not rolled_out and not (tmp_path / "samples").exists()


def test_prompts_that_change_at_other_seconds_are_other_batches(pipe, rolled_out, tmp_path):
    job = SampleJob(prompt="a|b @1s c|d|e @1s f", outputs="gif", sampling=TWO_SECONDS)
    files = run_sample(job, tmp_path)
    assert [request.seeds for request in rolled_out] == [[0, 2], [1, 3]]
    for seed, path in enumerate(files):
        assert path.name.endswith(f"seed{seed}.gif")
        np.testing.assert_allclose(grays(path), pixels(seed, 0, 13)[:, 0, 0, 0], atol=3)


def test_what_is_written_is_kept_when_a_later_one_fails(pipe, monkeypatch, tmp_path):
    whole = Generator.roll_out

    def failing(self, request, saved=None):
        for piece in whole(self, request):
            yield piece
            if 1 in request.seeds:
                raise RuntimeError("out of memory")

    monkeypatch.setattr(Generator, "roll_out", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        run_sample(SampleJob(prompt="one|two", batch_size=1, outputs="mp4|frames", sampling=TWO_SECONDS), tmp_path)
    folder = tmp_path / "samples"
    assert len(grays(folder / "00_one_seed0.mp4")) == 13
    np.testing.assert_allclose(grays(folder / "01_two_seed1.part.mp4"), pixels(1, 0, 5)[:, 0, 0, 0], atol=3)
    assert len(list((folder / "01_two_seed1.part").iterdir())) == 5
    assert not (folder / "01_two_seed1.mp4").exists() and not (folder / "01_two_seed1").exists()


def test_an_image_or_a_video_to_start_from(pipe, tmp_path):
    write_image(tmp_path / "start.png", np.full((48, 64, 3), 90, np.uint8))
    write_video(tmp_path / "start.mp4", np.concatenate([pixels(0, 20, 30)]), fps=6.5)  # 29 of whole latent frames
    for field, file, expected in (("image", "start.png", [90]), ("video", "start.mp4", 3 * np.arange(44, 49))):
        job = SampleJob(outputs="gif", sampling=TWO_SECONDS, **{field: str(tmp_path / file)})
        [path] = run_sample(job, tmp_path / field)
        np.testing.assert_allclose(grays(path)[: len(expected)], expected, atol=3)
        assert len(grays(path)) == 13


def test_prompts_from_a_line_a_file_and_standard_input(tmp_path, monkeypatch):
    assert read_prompts(" a | b|| ") == ["a", "b"]
    assert parse_prompt("a @home s") == "a @home s"
    for slip in ("a 7 @20 a 3", "a 7 @2s b @10", "@5s a 7"):
        with pytest.warns(UserWarning, match="'@[0-9]+s?' is read as words of the prompt: a change of the text is"):
            parse_prompt(slip)
    assert parse_prompt("a 7 @2.5s b @10s c") == [(0.0, "a 7"), (2.5, "b"), (10.0, "c")]
    (tmp_path / "p.txt").write_bytes("\ufeffa | b\r\n\r\nc".encode())
    assert read_prompts("unused", str(tmp_path / "p.txt")) == ["a | b", "c"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"d\ne\n")))
    assert read_prompts("unused", "-") == ["d", "e"]
    (tmp_path / "latin.txt").write_bytes(b"first\ngr\xfcn\n")
    (tmp_path / "empty.txt").write_text(" \n\n")
    for name, said in (
        ("latin.txt", "Line 2 of .* not UTF-8"),
        ("empty.txt", "no prompt in"),
        ("none.txt", "not exist"),
    ):
        with pytest.raises(ValueError, match=said):
            read_prompts("unused", str(tmp_path / name))


FRAME = np.zeros((32, 32, 3), np.uint8)
# What a user may give for each argument: possible values, then impossible ones.
VALUES = {
    "prompt": (
        ["a red 7", ["a", "b"], "x" * 200_000, "\x00", "日本語 🐉", "|", ["a"] * 5, [(0, "a"), (1, "b")], [[(0, "a")]]],
        ["", "  \n", [], None, 7, b"bytes", ["a", ""], ["a", None], "\udcff", {"a": 1}, [["a"]], [(1, "a")], [(0, 1)]],
    ),
    "seed": ([0, 1, 2**31 - 9, np.int64(3)], [-1, 2**31, 2**80, 1.5, "1", None, True, float("nan")]),
    "seconds": ([1, 0.01, np.float32(2), 3.5], [0, -1, 1e9, float("nan"), float("inf"), "60", None, [1], True, 1j]),
    "temperature": ([0.1, 1, 100.0], [0, -1.0, float("nan"), float("inf"), "hot", None]),
    "top_k": ([0, 1, 64, 65, 10**9, np.int32(4)], [-1, 1.5, "all", None, float("nan"), True]),
    "top_p": ([0.5, 1, 1e-9], [0, 1.1, -1, float("nan"), "0.9", None]),
    "min_p": ([0, 0.5, 1.0], [-0.1, 1.1, float("nan"), "0", None]),
    "guidance_scale": ([1, 3.5, 100.0], [0.5, -1, float("nan"), float("inf"), "2", None]),
    "reencode_frames": ([1, 5, 9], [0, -5, 6, 1.0, "5", None, True]),
    "continuation": (["ids", "anchor", "reencode"], ["none", "", 1, None]),
    "text_change": (["cut", "continue"], ["fade", "", True, None]),
    "image": (
        [FRAME],
        [
            FRAME[:16],
            FRAME[..., :1],
            FRAME / 255,
            FRAME[None],
            "a.png",
            7,
            [[1], [2, 3]],
            np.zeros((32, 32, 3), object),
        ],
    ),
    "video": (
        [FRAME[None].repeat(9, 0), FRAME[None]],
        [
            FRAME,
            FRAME[None, :, :8],
            np.zeros((0, 32, 32, 3), np.uint8),
            FRAME[None].astype(int),
            "a.mp4",
            [[1], [2, 3]],
        ],
    ),
    "candidates": ([1, 3, 255], [0, -1, 1.5, None, 256]),
    "window_latents": ([3], [0, -1, 2.5, None]),
    "sink_latents": ([0, 2], [-1, "1"]),
    "repetition_penalty": ([1.2, (1.0, 3.0)], [0, -1, 1e-38, float("nan")]),
    "continuation_temperature": ([0.5, (1.0, 0.5)], [-1, 1e39, "cold"]),
    "continuation_guidance_scale": ([2.0], [0.5, 1e38, None]),
    "decoding": ([], [{"cache": "int4"}, {"weights": 8}, {"parallel_ids": 0}, {"speed": 2}]),
    "negative_prompt": ([""], [7, None, "\udcff", b"x"]),
    "secs": ([], [1, None]),
    "codebook": ([], ["x"]),
    "self_": ([], [0]),
}


@pytest.mark.parametrize("seed", range(5))
def test_a_hundred_hostile_calls(seed, pipe, rolled_out):
    """A right result, or one clear sentence before anything is sampled."""
    rng = np.random.default_rng(seed)
    outcomes = []
    for _ in range(100):
        names = ["prompt", *rng.choice(list(VALUES)[1:], rng.integers(0, 4), replace=False)]
        call, is_possible = {}, not {"image", "video"} <= set(names)
        for name in names:
            possible, impossible = VALUES[name]
            is_good = bool(possible) and rng.random() < 0.8
            choices = possible if is_good else impossible
            call[name], is_possible = choices[rng.integers(len(choices))], is_possible and is_good
        rolled_out.clear()
        call = {"seconds": 2.0} | call
        outcomes.append(is_possible)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if is_possible:
                video = pipe(**call)
                shape = (max(1, round(float(call["seconds"]) * 6.5)), 32, 32, 3)
                assert video.dtype == np.uint8
                is_batch = isinstance(call["prompt"], list) and not isinstance(call["prompt"][0], tuple)
                assert video.shape == ((len(call["prompt"]), *shape) if is_batch else shape)
                continue
            with pytest.raises(ValueError) as error:
                pipe(**call)
        message = str(error.value)
        assert not rolled_out and message.endswith(".") and "\n" not in message and 20 < len(message) < 400, message
    assert 20 < sum(outcomes) < 80


def test_a_video_that_does_not_fit_into_memory_is_for_the_stream(pipe, monkeypatch):
    monkeypatch.setattr(pipeline, "host_memory", lambda: 2**20)
    with pytest.raises(ValueError, match="GiB, more than this machine has: take them from pipe.stream"):
        pipe("a 7", seconds=60)
    assert next(pipe.stream("a 7", seconds=60)).shape == (5, 32, 32, 3)


def test_videos_do_not_depend_on_how_many_are_sampled_together():
    """Five prompts, two at a time, are those of five together; each place has a seed of its own."""

    class Pipe:
        ids_per_frame = 4

        @staticmethod
        def num_frames(sampling):
            return 6

        @staticmethod
        def stream(prompts, seed, **sampling):
            for index in range(2):
                yield np.stack([np.full((3, 1, 1, 3), 10 * (seed + i) + index, np.uint8) for i in range(len(prompts))])

    found, whole = (sample_videos(Pipe, ["a"] * 5, 4, SamplingConfig(seconds=1.0), batch_size) for batch_size in (2, 5))
    np.testing.assert_array_equal(found, whole)
    assert found.shape == (5, 6, 1, 1, 3) and found[:, 0, 0, 0, 0].tolist() == [40, 50, 60, 70, 80]
