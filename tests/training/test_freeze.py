"""The second phase of the tokenizer: the decoder alone learns, and the ids stay what they were."""

import dataclasses

import jax
import numpy as np
import pytest

from loong_jax.config import DEBUG_TOKENIZER, ConfigError, DataConfig, OptimizerConfig, TokenizerJob, TrainConfig
from loong_jax.training.tokenizer_job import train_tokenizer

JOB = TokenizerJob(
    tokenizer=DEBUG_TOKENIZER,
    data=DataConfig(frame_size=32, num_frames=1),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1, weight_decay=0.1),
    train=TrainConfig(num_steps=2, batch_size=8, log_every=1, checkpoint_every=2, eval_every=2, eval_batches=1),
)


@pytest.mark.slow
def test_the_decoder_learns_clips_over_the_encoder_and_codebook_of_the_images(tmp_path):
    images = train_tokenizer(JOB, tmp_path / "images")
    following = dataclasses.replace(
        JOB, init_from="../images", freeze_encoder=True, data=dataclasses.replace(JOB.data, num_frames=5)
    )
    clips = train_tokenizer(following, tmp_path / "clips")
    for part in ("encoder", "quantizer"):
        jax.tree.map(np.testing.assert_array_equal, images.params[part], clips.params[part])
    changed = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), images.params["decoder"], clips.params["decoder"])
    assert all(value > 0 for value in jax.tree.leaves(changed))
    assert (tmp_path / "clips" / "samples" / "reconstruction.png").stat().st_size > 1000
    shown = b"".join(file.read_bytes() for file in (tmp_path / "clips" / "tensorboard").iterdir())
    assert b"reconstruction" in shown


def test_a_frozen_encoder_must_come_from_somewhere():
    with pytest.raises(ConfigError, match="freeze_encoder=True.*init_from"):
        dataclasses.replace(JOB, freeze_encoder=True)
