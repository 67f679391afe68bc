"""Train the causal video tokenizer (246M parameters, 8,192 codes, 128x128, 17 frames).

    python -m loong_jax.main --config=configs/tokenizer.py --workdir=runs/tokenizer \
        --config.data.source=folder:DIR

Without the last line it trains on the embedded moving digits. Writes checkpoints, pictures of held-out clips over their
reconstructions, metrics.jsonl and TensorBoard logs to the workdir; the same command resumes. The perceptual loss needs
`pip install "loong_jax[eval]"`. Begin with single frames, `:image`, and go on with clips by
`--config.init_from=../NAME_OF_ITS_WORKDIR`. Cheaper (VidTok, arXiv 2412.13061): `:low` trains at 64x64, then `:high`
with `--config.init_from` trains the decoder alone at 128x128. `:small` is a small model at 64x64 for ten minutes of 2
CPU cores, half of them for `:small,image`; it has squared error alone, `:small,gan` adds the other losses and
`:small,high` goes on at 128x128. `:debug` is a tiny one that trains a few steps in seconds.
Values: MAGVIT-v2's recipe (arXiv 2310.05737, appendix A.2) where it is known, turned to pixels in [-1, 1]; when the
discriminator starts is a choice.
"""

import dataclasses

from loong_jax.config import (
    DEBUG_TOKENIZER,
    FULL_TOKENIZER_JOB,
    SMALL_TOKENIZER_OPTIMIZER,
    DataConfig,
    DiscriminatorConfig,
    OptimizerConfig,
    QuantizerConfig,
    TokenizerConfig,
    TokenizerJob,
    TokenizerLossConfig,
    TrainConfig,
)
from loong_jax.config_dict import parse_variant, to_config_dict


def get_config(variant: str = ""):
    chosen = parse_variant(variant, ("debug", "small"), ("image", "low", "high", "gan"))
    if "debug" in chosen:
        job = _debug()
    elif "small" in chosen:
        job = _small(chosen)
    else:
        job = FULL_TOKENIZER_JOB
    if "low" in chosen:
        job = dataclasses.replace(job, data=dataclasses.replace(job.data, frame_size=64))
    if "image" in chosen:
        job = dataclasses.replace(job, data=dataclasses.replace(job.data, num_frames=1))
    # Of "high", the rest is said on the command line: whose encoder to keep.
    config = to_config_dict(job)
    config.freeze_encoder = "high" in chosen
    return config


def _small(chosen: set[str]) -> TokenizerJob:
    """64x64 pixels -> 8x8 ids, after the demo's recipe."""
    is_image, is_high = "image" in chosen, "high" in chosen
    job = TokenizerJob(
        tokenizer=TokenizerConfig(
            base_channels=32,
            channel_multipliers=(1, 2, 4),
            temporal_strides=(2, 2),
            spatial_strides=(2, 1),
            patch_size=4,
            num_res_blocks=1,
            num_mid_blocks=1,
            norm_groups=8,
            quantizer=QuantizerConfig(
                num_codes=1024, dim=16, decay=0.97, commitment_weight=0.05, start_step=100, dead_after=100
            ),
        ),
        data=DataConfig(frame_size=128 if is_high else 64, num_frames=17),
        optimizer=SMALL_TOKENIZER_OPTIMIZER,
        train=TrainConfig(
            num_steps=350 if is_image else 200,
            batch_size=64 if is_image else 2 if is_high else 6,
            log_every=25,
            checkpoint_every=100,
            eval_every=100,
            eval_batches=2 if is_image else 4,
        ),
    )
    if "gan" not in chosen:
        return job
    return dataclasses.replace(
        job,
        loss=TokenizerLossConfig(
            perceptual_weight=0.1,
            adversarial_weight=0.1,
            adversarial="hinge",
            adversarial_start=50,
            adversarial_ramp=50,
            adaptive_max=1.0,
            lecam_weight=0.01,
            lecam_decay=0.9,
        ),
        discriminator=DiscriminatorConfig(
            kind="patch", base_channels=32, channel_multipliers=(1, 2, 4), learning_rate=5e-4, b1=0.5
        ),
        measure_lpips=True,
    )


def _debug() -> TokenizerJob:
    """All losses but the perceptual one, which needs an extra."""
    return TokenizerJob(
        tokenizer=DEBUG_TOKENIZER,
        data=DataConfig(frame_size=32, num_frames=17),
        loss=TokenizerLossConfig(
            adversarial_weight=0.1, adversarial_start=2, adversarial_ramp=2, r1_weight=1.0, lecam_weight=0.001
        ),
        discriminator=DiscriminatorConfig(base_channels=4, channel_multipliers=(1, 2)),
        ema_decay=0.999,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2, weight_decay=0.0, b1=0.5, b2=0.99),
        train=TrainConfig(num_steps=6, batch_size=8, log_every=2, checkpoint_every=3, eval_every=6, eval_batches=1),
    )
