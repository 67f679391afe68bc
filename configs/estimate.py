"""Compile the full-size tokenizer training for TPUs that need not be there: which batch fits into their memory?

    python -m loong_jax.main --config=configs/estimate.py --workdir=runs/estimate --config.topology="v5e:2x4|v6e:2x4"

Needs `pip install -e ".[tpu]"` for the TPU compiler, and no TPU; minutes for each batch size. Prints the memory of each
device and writes results.json. Any field of the training can be changed, e.g. --config.tokenizer.mesh.data=8. `:debug`
compiles a tiny model.
"""

import dataclasses

from loong_jax.config import DEBUG_TOKENIZER, DataConfig, DiscriminatorConfig, EstimateJob
from loong_jax.config_dict import parse_variant, to_config_dict


def get_config(variant: str = ""):
    job = EstimateJob()
    if "debug" in parse_variant(variant, ("debug",)):
        small = dataclasses.replace(
            job.tokenizer,
            tokenizer=DEBUG_TOKENIZER,
            discriminator=DiscriminatorConfig(base_channels=8, channel_multipliers=(1, 2)),
            data=DataConfig(frame_size=32, num_frames=5),
        )
        job = EstimateJob(batch_sizes=(8,), tokenizer=small)
    return to_config_dict(job)
