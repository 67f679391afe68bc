"""Train the causal video tokenizer (246M parameters, 8,192 codes, 128x128, 17 frames).

    python -m loong_jax.main --config=configs/tokenizer.py --workdir=runs/tokenizer \
        --config.data.source=video_folder --config.data.path=DIR

Without the last line it trains on the embedded moving digits. Writes checkpoints, metrics.jsonl and TensorBoard logs to
the workdir; the same command resumes. `:debug` is a tiny model that trains a few steps in seconds on a CPU.
Values: MAGVIT-v2's recipe (arXiv 2310.05737, appendix A.2) where it is known; GAN and perceptual losses are not in yet.
"""

import dataclasses

from loong_jax.config import DEBUG_TOKENIZER, DataConfig, OptimizerConfig, TokenizerJob, TrainConfig
from loong_jax.config_dict import parse_variant, to_config_dict


def get_config(variant: str = ""):
    job = TokenizerJob(data=DataConfig(num_frames=17))
    if "debug" in parse_variant(variant, ("debug",)):
        job = dataclasses.replace(
            job,
            tokenizer=DEBUG_TOKENIZER,
            data=DataConfig(frame_size=32, num_frames=17),
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2, weight_decay=0.0, b1=0.5, b2=0.99),
            train=TrainConfig(num_steps=6, batch_size=8, log_every=2, checkpoint_every=3, eval_every=6, eval_batches=1),
        )
    return to_config_dict(job)
