"""Train the causal video tokenizer (246M parameters, 8,192 codes, 128x128, 17 frames).

    python -m loong_jax.main --config=configs/tokenizer.py --workdir=runs/tokenizer \
        --config.data.source=video_folder --config.data.path=DIR

Without the last line it trains on the embedded moving digits. Writes checkpoints, metrics.jsonl and TensorBoard logs to
the workdir; the same command resumes. `:image` trains on single frames, to begin with; go on with clips by
`--config.init_from=../NAME_OF_ITS_WORKDIR`. `:small` is a small model at 64x64 for ten minutes of 2 CPU cores, half of
them for `:small,image`; `:debug` is a tiny one that trains a few steps in seconds.
Values: MAGVIT-v2's recipe (arXiv 2310.05737, appendix A.2) where it is known; GAN and perceptual losses are not in yet.
"""

import dataclasses

from loong_jax.config import (
    DEBUG_TOKENIZER,
    DataConfig,
    OptimizerConfig,
    QuantizerConfig,
    TokenizerConfig,
    TokenizerJob,
    TrainConfig,
)
from loong_jax.config_dict import parse_variant, to_config_dict


def get_config(variant: str = ""):
    chosen = parse_variant(variant, ("debug", "small", "image"))
    job = TokenizerJob(data=DataConfig(num_frames=17))
    if "small" in chosen:
        job = _small(job, "image" in chosen)
    if "debug" in chosen:
        job = dataclasses.replace(
            job,
            tokenizer=DEBUG_TOKENIZER,
            data=DataConfig(frame_size=32, num_frames=17),
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2, weight_decay=0.0, b1=0.5, b2=0.99),
            train=TrainConfig(num_steps=6, batch_size=8, log_every=2, checkpoint_every=3, eval_every=6, eval_batches=1),
        )
    if "image" in chosen:
        job = dataclasses.replace(job, data=dataclasses.replace(job.data, num_frames=1))
    return to_config_dict(job)


def _small(job: TokenizerJob, is_image: bool) -> TokenizerJob:
    """64x64 pixels -> 8x8 ids, after the demo's recipe."""
    return dataclasses.replace(
        job,
        tokenizer=TokenizerConfig(
            base_channels=32,
            channel_multipliers=(1, 2, 4),
            temporal_strides=(2, 2),
            spatial_strides=(2, 1),
            patch_size=4,
            num_res_blocks=1,
            num_mid_blocks=1,
            norm_groups=8,
            quantizer=QuantizerConfig(num_codes=1024, dim=16, commitment_weight=0.05),
        ),
        data=dataclasses.replace(job.data, frame_size=64),
        optimizer=OptimizerConfig(
            learning_rate=1e-3, warmup_steps=50, end_fraction=0.05, weight_decay=0.0, b1=0.5, b2=0.99
        ),
        train=TrainConfig(
            num_steps=400 if is_image else 250,
            batch_size=64 if is_image else 6,
            log_every=25,
            checkpoint_every=100,
            eval_every=100,
            eval_batches=2 if is_image else 4,
        ),
    )
