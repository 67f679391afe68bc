"""Pictures of what a model in training samples."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from loong_jax import sharding
from loong_jax.config import (
    DEBUG_TOKENIZER,
    DEBUG_TRANSFORMER,
    ConfigError,
    DataConfig,
    LanguageModelJob,
    MeshConfig,
    SamplingConfig,
    TrainConfig,
)
from loong_jax.data.sources import make_source
from loong_jax.models import transformer
from loong_jax.pipeline import Pipeline
from loong_jax.previews import Previews
from loong_jax.sampling import clip_sampler
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.training.lm_job import find_tokenizer, train_language_model
from loong_jax.video import contact_sheet
from loong_jax.video_file import read_video

JOB = LanguageModelJob(
    model=DEBUG_TRANSFORMER,
    tokenizer=DEBUG_TOKENIZER,
    allow_untrained_tokenizer=True,
    data=DataConfig(frame_size=32, num_frames=5, num_clips=16, max_text_ids=24),
    sampling=SamplingConfig(top_k=1, guidance_scale=1.0),
    mesh=MeshConfig(fsdp=2, data=4),
    train=TrainConfig(num_steps=2, batch_size=8, log_every=1, checkpoint_every=2, eval_every=1, eval_batches=1),
    num_previews=2,
)


@pytest.mark.slow
def test_the_picture_is_of_the_parameters_at_that_evaluation(tmp_path, capsys):
    """By the pipeline that anyone would make of them, with the same texts, settings and seed."""
    seen, own = [], Previews(JOB)

    def preview(params, tokenizer, texts):
        pictures = own(params, tokenizer, texts)
        seen.append((jax.device_get(params), texts, pictures["samples"]))
        return pictures

    train_language_model(JOB, tmp_path / "run", preview=preview)
    held_out = make_source(JOB.data, "test", num_examples=2)
    texts = [held_out[index]["caption"] for index in range(2)]
    assert [texts, texts] == [seen_texts for _, seen_texts, _ in seen]
    assert f"a row for each of: {'; '.join(texts)}\n" in capsys.readouterr().out
    picture = seen[1][2]
    assert picture.shape[0] == 2 * 66 and picture.shape[1] == 5 * 66
    np.testing.assert_array_equal(read_video(tmp_path / "run" / "samples" / "samples.png")[0], picture)
    pipe = Pipeline(JOB, seen[1][0], find_tokenizer(JOB, tmp_path / "run"), JOB.mesh)
    videos = pipe(texts, JOB.seed, seconds=5 / 6.5)
    np.testing.assert_array_equal(contact_sheet(list(videos), columns=5), picture)


def test_a_model_of_single_images(tmp_path, monkeypatch):
    job = dataclasses.replace(JOB, data=dataclasses.replace(JOB.data, num_frames=1))
    params = transformer.init_params(job.model, jax.random.key(0))
    mesh = sharding.make_mesh(JOB.mesh)
    shardings = jax.tree.map(lambda x: NamedSharding(mesh, PartitionSpec()), params)
    (tmp_path / "tokenizer").mkdir()
    find_tokenizer(job, tmp_path).save(tmp_path / "tokenizer")
    tokenizer = VideoTokenizer.load(tmp_path / "tokenizer")  # on one device, where the training has eight
    with jax.set_mesh(mesh):
        before = clip_sampler.prompt_ids
        marked = []
        monkeypatch.setattr(
            clip_sampler, "prompt_ids", lambda *text, **is_image: marked.append(is_image) or before(*text, **is_image)
        )
        pictures = Previews(job)(jax.device_put(params, shardings), tokenizer, ["a red 7", "a 3"])
    assert pictures["samples"].shape == (2 * 66, 66, 3)
    assert marked and all(
        mark == {"is_image": True} for mark in marked
    )  # it was trained on texts that are followed by an image


def test_a_training_does_not_end_for_a_picture(tmp_path):
    job = dataclasses.replace(JOB, sampling=SamplingConfig(negative_prompt="a blue 3"))
    previews, mesh = Previews(job), sharding.make_mesh(JOB.mesh)
    params = jax.device_put(transformer.init_params(job.model, jax.random.key(0)), NamedSharding(mesh, PartitionSpec()))
    with pytest.warns(UserWarning, match="goes on without samples.png: sampling.negative_prompt needs"):
        assert previews(params, find_tokenizer(job, tmp_path), ["a red 7"]) == {}
    assert previews(params, find_tokenizer(job, tmp_path), ["a red 7"]) == {}


def test_several_processes_cannot(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="num_previews=2 is not possible with 2 processes"):
        Previews(JOB)
    Previews(dataclasses.replace(JOB, num_previews=0))
