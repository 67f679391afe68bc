"""Stage 2 of the language model: images and clips of 17 frames, 1,280 ids.

    python -m loong_jax.main --config=configs/stage2.py:700m --workdir=runs/stage2 \
        --config.data.source=folder:DIR

Sizes: `:700m` (default), `:3b`, `:7b`. `:small` is for a CPU: 64x64 pixels in the ids of
`tokenizer.py:small`. `:debug` trains a tiny one a few steps in seconds.
The tokenizer is looked for in ../tokenizer and the weights of stage 1 in ../stage1, beside the workdir.
The first run encodes the data into <workdir>/tokens; the same command resumes.
Images stay in the mix; their share is a choice. The paper's 500,000 iterations are split by choice;
batch 256 is its own: 64 rows with room for 4 clips each.
Learning rates are those of PAR (arXiv 2412.15119) for models of this size, the other values of AdamW LlamaGen's (arXiv
2406.06525); the z-loss is that of Cosmos (arXiv 2501.03575).
"""

import dataclasses

from loong_jax.config import (
    DEBUG_TOKENIZER,
    DEBUG_TRANSFORMER,
    SMALL_TRANSFORMER,
    SMALL_TRANSFORMER_OPTIMIZER,
    TRANSFORMER_PRESETS,
    DataConfig,
    LanguageModelJob,
    LossConfig,
    OptimizerConfig,
    TrainConfig,
)
from loong_jax.config_dict import parse_variant, to_config_dict


def get_config(variant: str = ""):
    parts = parse_variant(variant, ("debug", "small", *TRANSFORMER_PRESETS))
    size = next((part for part in TRANSFORMER_PRESETS if part in parts), "700m")
    job = LanguageModelJob(
        init_from="../stage1",
        model=dataclasses.replace(TRANSFORMER_PRESETS[size], remat="full"),
        data=DataConfig(num_frames=17, image_share=0.2, pack=4, num_clips=0, num_images=0),
        loss=LossConfig(early_weight=0.0, z_weight=1e-4),
        optimizer=OptimizerConfig(learning_rate=1e-4 if size == "700m" else 2e-4),
        train=TrainConfig(num_steps=200_000, batch_size=64),
    )
    if "small" in parts:
        job = dataclasses.replace(
            job,
            model=SMALL_TRANSFORMER,
            data=dataclasses.replace(job.data, frame_size=64, pack=0, num_clips=4096, num_images=8192, max_text_ids=32),
            optimizer=SMALL_TRANSFORMER_OPTIMIZER,
            train=TrainConfig(
                num_steps=1000, batch_size=16, log_every=25, checkpoint_every=100, eval_every=250, eval_batches=4
            ),
            num_previews=4,
        )
    if "debug" in parts:
        job = dataclasses.replace(
            job,
            init_from="",
            allow_untrained_tokenizer=True,
            tokenizer=DEBUG_TOKENIZER,
            model=DEBUG_TRANSFORMER,
            data=dataclasses.replace(job.data, frame_size=32, num_clips=16, num_images=16, max_text_ids=32),
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
            train=TrainConfig(num_steps=6, batch_size=8, log_every=2, checkpoint_every=3, eval_every=6, eval_batches=1),
        )
    return to_config_dict(job)
