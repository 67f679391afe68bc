"""What a checkpoint says of its training decides who may go on from it."""

import dataclasses
import json

import pytest

from loong_jax.config import DEBUG_TOKENIZER, DataConfig, LanguageModelJob, MeshConfig, TokenizerJob, TrainConfig
from loong_jax.training.provenance import changed_settings, check_finished, check_same_model, describe

JOB = LanguageModelJob()
META = describe(JOB, tokenizer_fingerprint="abc")


def changed(job=JOB, fingerprint="abc", **fields):
    return describe(dataclasses.replace(job, **fields), tokenizer_fingerprint=fingerprint)


def test_the_meta_says_what_the_model_is_and_which_code_made_it():
    assert META["vocabulary"]["text"] == 32000 and META["vocabulary"]["special"][0] == "pad"
    assert META["config"]["task"] == "language_model" and len(META["code"]["source"]) == 16


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (changed(model=dataclasses.replace(JOB.model, num_heads=8, num_kv_heads=8)), "num_heads is 16, wanted 8"),
        (changed(model=dataclasses.replace(JOB.model, rope="3d")), "config.model.rope is '1d', wanted '3d'"),
        (changed(fingerprint="xyz"), "tokenizer_fingerprint is 'abc', wanted 'xyz'"),
        (changed(model=dataclasses.replace(JOB.model, num_video_ids=64)), "vocabulary.video is 8192, wanted 64"),
        (describe(TokenizerJob()), "task is 'language_model', wanted 'tokenizer'"),
    ],
)
def test_another_model_is_refused_by_what_differs(wanted, said, tmp_path):
    """Also where all shapes are the same."""
    with pytest.raises(ValueError, match=f"{tmp_path} is of another model: .*{said}"):
        check_same_model(META, wanted, tmp_path)


def test_how_a_model_is_computed_and_trained_may_change(tmp_path):
    model = dataclasses.replace(JOB.model, remat="full", attention="xla", compute_dtype="float32")
    wanted = changed(model=model, mesh=MeshConfig(data=2), tokenizer=DEBUG_TOKENIZER, data=DataConfig(fps=8.0))
    check_same_model(META, wanted, tmp_path)
    assert "config" not in "".join(changed_settings(META, wanted))
    assert "data.fps is 6.5, wanted 8.0" in changed_settings(META, wanted)
    assert changed_settings(META, META) == []


def test_a_setting_that_is_new_had_its_default_before(tmp_path):
    older = json.loads(json.dumps(META))
    del older["config"]["sampling"]["text_change"], older["config"]["model"]["qk_norm"]
    assert changed_settings(older, META) == []
    check_finished(older, META, tmp_path, 5)
    check_same_model(older, META, tmp_path)
    older["config"]["model"]["of_another_version"] = 1
    assert any("of_another_version is 1, wanted None" in line for line in changed_settings(older, META))


def test_a_finished_training_is_not_started_again_with_other_settings(tmp_path):
    check_finished(META, changed(train=TrainConfig(log_every=3), mesh=MeshConfig(data=2)), tmp_path, 5)
    said = "done its 5 steps .* data.source is 'moving_digits', wanted 'folder:x'.*raise"
    with pytest.raises(ValueError, match=said):
        check_finished(META, changed(data=DataConfig(source="folder:x")), tmp_path, 5)
