"""Ids on disk: a run that is killed at any time goes on to the same files, and ids alone give the same video."""

import dataclasses
import os

import jax
import numpy as np
import pytest

from loong_jax import pipeline
from loong_jax.config import (
    DEBUG_TOKENIZER,
    DEBUG_TRANSFORMER,
    DataConfig,
    LanguageModelJob,
    SampleJob,
    SamplingChanges,
)
from loong_jax.models import transformer
from loong_jax.pipeline import Pipeline
from loong_jax.sample import run_sample
from loong_jax.sampling.long_video import Generator
from loong_jax.sampling.saved_ids import SavedIds
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.video import write_image
from loong_jax.video_file import read_video

MODEL = LanguageModelJob(
    model=dataclasses.replace(DEBUG_TRANSFORMER, max_length=128),
    data=DataConfig(frame_size=32, num_frames=17, max_text_ids=8),
)
# 43 frames: rounds of 5, 3, 3 and 1 latent frames.
JOB = SampleJob(
    model_path="../stage3",
    prompt="a red 7 @4s a blue 3",
    outputs="mp4|frames|sheet",
    sampling=SamplingChanges(seconds=43 / 6.5),
)


@pytest.fixture(scope="module")
def model() -> Pipeline:
    params = jax.tree.map(lambda p: 4 * p, transformer.init_params(MODEL.model, jax.random.key(0)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
        return Pipeline(MODEL, params, VideoTokenizer.untrained(DEBUG_TOKENIZER))


@pytest.fixture
def pipe(model, monkeypatch) -> Pipeline:
    monkeypatch.setattr(pipeline, "load", lambda workdir, mesh: model)
    monkeypatch.setattr(pipeline, "load_tokenizer", lambda workdir: model.generator.tokenizer)
    return model


def contents(workdir) -> dict[str, bytes]:
    files = [path for path in (workdir / "samples").rglob("*") if path.is_file()]
    return {str(path.relative_to(workdir)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> dict[str, bytes]:
    """The files of a run that nobody stops."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "load", lambda workdir, mesh: model)
        run_sample(JOB, folder)
    return contents(folder)


@pytest.mark.parametrize("kills", [[1], [5, 9], [7, 12]])
def test_a_killed_run_goes_on_to_the_same_files(kills, pipe, whole, monkeypatch, tmp_path):
    append, calls = SavedIds.append, []

    def killed(self, ids):
        calls.append(self)
        if len(self) + 1 == kills[0]:
            with self.path.open("ab") as file:
                file.write(b"\1\2\3")  # a write that the kill cut short
            raise SystemExit
        append(self, ids)

    for _ in range(len(kills)):
        monkeypatch.setattr(SavedIds, "append", killed)
        with pytest.raises(SystemExit):
            run_sample(JOB, tmp_path)
        kills.pop(0)
    monkeypatch.setattr(SavedIds, "append", append)
    run_sample(JOB, tmp_path)
    found = contents(tmp_path)
    assert {name: found[name] for name in whole} == whole
    assert {name for name in found.keys() - whole.keys() if "part" not in name} == set()


def test_what_is_whole_is_not_done_again(pipe, monkeypatch, tmp_path, capsys):
    job = dataclasses.replace(JOB, prompt="a red 7", outputs="mp4", sampling=SamplingChanges(seconds=1.0))
    files = run_sample(job, tmp_path)
    before, roll_out = files[0].read_bytes(), Generator.roll_out

    def roll_out_saved(self, request, saved=None):
        assert saved.shape[1] == self.num_latents(request)
        return roll_out(self, request, saved)

    monkeypatch.setattr(Generator, "roll_out", lambda *args: pytest.fail("sampled again"))
    assert run_sample(job, tmp_path) == files and "there already" in capsys.readouterr().out
    os.utime(files[0], (0, 0))  # of ids that were there before, and made anew of those that are
    monkeypatch.setattr(Generator, "roll_out", roll_out_saved)
    assert run_sample(job, tmp_path) == files and files[0].read_bytes() == before
    monkeypatch.setattr(Generator, "roll_out", roll_out)
    # Other settings are another video; the ids of those before stay.
    ids = files[0].with_suffix(".ids")
    kept = {}
    for number, temperature in enumerate((3.0, 4.0), start=1):
        kept[ids.with_suffix(f".{number}.ids")] = ids.read_bytes()
        with pytest.warns(UserWarning, match=rf"not sampled with these settings: it is kept as .*\.{number}\.ids"):
            sampling = SamplingChanges(seconds=1.0, temperature=temperature)
            run_sample(dataclasses.replace(job, sampling=sampling), tmp_path)
    assert files[0].read_bytes() != before
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*.ids")} == kept
    [again, *_] = run_sample(dataclasses.replace(job, decode=str(min(kept))), tmp_path)
    assert again.name.endswith(".1.mp4") and again.read_bytes() == before


def test_ids_of_scenes_are_shown_as_they_were(pipe, tmp_path):
    """Each scene begins with a latent frame of a single frame, so that frames are not counted from the video's."""
    sampling = SamplingChanges(seconds=4.0, text_change="cut")
    job = dataclasses.replace(JOB, prompt="a red 7 @1s a blue 3 @2.5s a red 2", outputs="frames", sampling=sampling)
    [folder] = run_sample(job, tmp_path)
    ids = SavedIds(folder.with_name(f"{folder.name}.ids"))
    expected = [path.read_bytes() for path in sorted(folder.iterdir())]
    assert len(expected) == 26
    for count, shown in ((len(ids), 26), (5, 14), (3, 9)):  # 1 + 4 + 4 frames, then 1 + 4 + 4 + ...
        ids.keep(count)
        [again] = run_sample(dataclasses.replace(job, decode=str(ids.path)), tmp_path / str(count))
        assert [path.read_bytes() for path in sorted(again.iterdir())] == expected[:shown]


def test_whole_videos_stay_while_others_go_on(pipe, monkeypatch, tmp_path, capsys):
    job = dataclasses.replace(
        JOB, prompt="a red 7|a blue 3|a red 2", outputs="mp4", sampling=SamplingChanges(seconds=3.0)
    )
    expected = run_sample(job, tmp_path / "at_once")
    run_sample(dataclasses.replace(job, prompt="a red 7|a blue 3"), tmp_path)
    first, second, third = (tmp_path / "samples" / path.with_suffix(".ids").name for path in expected)
    before = first.stat().st_mtime_ns
    SavedIds(second).keep(6)  # a round of 5 latent frames and the beginning of the next
    capsys.readouterr()
    files = run_sample(job, tmp_path)
    assert "00_a_red_7_seed0: there already" in capsys.readouterr().out
    assert first.stat().st_mtime_ns == before
    assert [path.read_bytes() for path in files] == [path.read_bytes() for path in expected]
    assert len(SavedIds(third)) == len(SavedIds(second)) == len(SavedIds(first))


def test_a_longer_video_goes_on_from_the_shorter(pipe, monkeypatch, tmp_path):
    job = dataclasses.replace(JOB, prompt="a red 7", outputs="mp4")
    long = dataclasses.replace(job, sampling=SamplingChanges(seconds=5.0))
    [expected] = run_sample(long, tmp_path / "at_once")
    run_sample(dataclasses.replace(job, sampling=SamplingChanges(seconds=3.0)), tmp_path)
    roll_out, saved_frames = Generator.roll_out, []

    def noted(self, request, saved=None):
        saved_frames.append(saved.shape[1])
        return roll_out(self, request, saved)

    monkeypatch.setattr(Generator, "roll_out", noted)
    [found] = run_sample(long, tmp_path)
    assert saved_frames == [5] and found.read_bytes() == expected.read_bytes()  # of 6, those of whole rounds
    assert len(list((tmp_path / "samples").glob("*.ids"))) == 1
    # A shorter one is another file; nothing is lost of the longer.
    with pytest.warns(UserWarning, match="it is kept as"):
        run_sample(dataclasses.replace(job, sampling=SamplingChanges(seconds=3.0)), tmp_path)


@pytest.mark.parametrize("continuation", ["reencode", "ids"])
def test_saved_ids_alone_give_the_video(continuation, pipe, monkeypatch, tmp_path):
    write_image(tmp_path / "start.png", np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    sampling = dataclasses.replace(JOB.sampling, continuation=continuation)
    job = dataclasses.replace(JOB, image=str(tmp_path / "start.png"), outputs="mp4|frames|sheet", sampling=sampling)
    run_sample(job, tmp_path / "sampled")
    expected = contents(tmp_path / "sampled")
    [ids] = (tmp_path / "sampled" / "samples").glob("*.ids")
    monkeypatch.setattr(pipeline, "load", lambda *args: pytest.fail("the model was loaded"))
    decode = dataclasses.replace(job, decode=str(ids))
    run_sample(decode, tmp_path / "decoded")
    found = contents(tmp_path / "decoded")
    assert found == {name: content for name, content in expected.items() if not name.endswith(".ids")}
    # As far as a killed run came: the image and seven latent frames.
    SavedIds(ids).keep(7)
    run_sample(dataclasses.replace(decode, decode=str(ids.parent)), tmp_path / "part")
    [video] = (tmp_path / "part" / "samples").glob("*.mp4")
    whole = read_video(tmp_path / "decoded" / "samples" / video.name)
    np.testing.assert_allclose(read_video(video).astype(int), whole[: 1 + 7 * 4], atol=40)


def test_files_that_are_no_ids_are_named(pipe, whole, tmp_path):
    content = next(content for name, content in whole.items() if name.endswith(".ids"))
    with pytest.raises(ValueError, match="no file of ids in"):
        run_sample(dataclasses.replace(JOB, decode=str(tmp_path)), tmp_path)
    header, ids = content.split(b"\n", 1)
    for name, wrong in {
        "empty": b"",
        "text": b"hello\n",
        "bytes": bytes(range(256)),
        "list": b"[1]\n",
        "version": header.replace(b'"format": 1', b'"format": 2') + b"\n" + ids,
        "setting": header.replace(b'"top_k": 100', b'"top_k": -1') + b"\n" + ids,
        "cut": header[:-9],
        "start": header.replace(b'"num_start": 0', b'"num_start": 2') + b"\n" + ids[:100],
        "count": header.replace(b'"num_start": 0', b'"num_start": "5"') + b"\n" + ids,
        "height": header.replace(b'"height": 4', b'"height": 0') + b"\n" + ids,
        "size": header.replace(b'"frame_size": 32', b'"frame_size": "32"') + b"\n" + ids,
    }.items():
        (tmp_path / f"{name}.ids").write_bytes(wrong)
        with pytest.raises(ValueError, match=f"{name}.ids is no file of ids"):
            SavedIds(tmp_path / f"{name}.ids")
    with pytest.raises(ValueError, match="does not exist"):
        SavedIds(tmp_path / "missing.ids")
    (tmp_path / "other.ids").write_bytes(content.replace(pipe.generator.tokenizer.fingerprint.encode(), 16 * b"0"))
    (tmp_path / "none.ids").write_bytes(header + b"\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.ids").write_bytes(header + b"\n")
    (tmp_path / "folder" / "b.ids").write_bytes(content)
    (tmp_path / "folder" / "c.ids").write_bytes(header + b"\n")
    with pytest.warns(UserWarning, match="[ac].ids holds no latent frame yet"):
        made = run_sample(dataclasses.replace(JOB, decode=str(tmp_path / "folder"), outputs="mp4"), tmp_path / "made")
    assert [path.name for path in made] == ["b.mp4"]
    for name, said in (("other", "ids of tokenizer 0000"), ("none", "no latent frame yet")):
        with pytest.raises(ValueError, match=said):
            run_sample(dataclasses.replace(JOB, decode=str(tmp_path / f"{name}.ids")), tmp_path)
