"""Stage 3 of the language model: images and clips of 65 frames (10 s), 4,352 ids, early frames weighted.

    python -m loong_jax.main --config=configs/stage3.py:700m --workdir=runs/stage3 \
        --config.data.source=folder:DIR

Sizes: `:700m` (default), `:3b`, `:7b`. `:small` is for a CPU: 64x64 pixels in the ids of
`tokenizer.py:small`. `:debug` trains a tiny one a few steps in seconds.
The tokenizer is looked for in ../tokenizer and the weights of stage 2 in ../stage2, beside the workdir.
The first run encodes the data into <workdir>/tokens; the same command resumes.
Images stay in the mix; their share, the weight 2 and its 5 latent frames (the stage-2 part) are choices, see README.
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
        init_from="../stage2",
        model=dataclasses.replace(TRANSFORMER_PRESETS[size], remat="full"),
        data=DataConfig(num_frames=65, image_share=0.1, pack=1, num_clips=0, num_images=0),
        loss=LossConfig(early_frames=5, early_weight=1.0, z_weight=1e-4),
        optimizer=OptimizerConfig(learning_rate=1e-4 if size == "700m" else 2e-4),
        train=TrainConfig(num_steps=100_000),
    )
    if "small" in parts:
        job = dataclasses.replace(
            job,
            model=SMALL_TRANSFORMER,
            data=dataclasses.replace(job.data, frame_size=64, pack=0, num_clips=1024, num_images=8192, max_text_ids=32),
            optimizer=dataclasses.replace(SMALL_TRANSFORMER_OPTIMIZER, learning_rate=2e-3, matrix_learning_rate=0.02),
            train=TrainConfig(
                num_steps=250, batch_size=4, log_every=25, checkpoint_every=100, eval_every=250, eval_batches=8
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
