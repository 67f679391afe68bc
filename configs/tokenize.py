"""Turn videos or images into token shards, so that trainings of the language model need no tokenizer and no decoding.

    python -m loong_jax.main --config=configs/tokenize.py --workdir=runs/tokens --config.data.source=folder:DIR

Encodes a clip of each video (data.num_clips: so many clips) with the tokenizer in ../tokenizer, beside the workdir, and
writes runs/tokens/train and runs/tokens/test; the same command goes on where it was stopped. Train on them with
`--config.data.source=tokens:runs/tokens`; for images, tokenize with --config.data.num_frames=1 and train with
`--config.data.image_source=tokens:DIR`. `:debug` is tiny and takes seconds on a CPU.
"""

import dataclasses

from loong_jax.config import TokenizeJob
from loong_jax.config_dict import parse_variant, to_config_dict


def get_config(variant: str = ""):
    job = TokenizeJob()
    job = dataclasses.replace(job, data=dataclasses.replace(job.data, num_clips=0))
    if "debug" in parse_variant(variant, ("debug",)):
        data = dataclasses.replace(job.data, frame_size=32, num_frames=17, num_clips=16)
        job = dataclasses.replace(job, data=data, num_held_out=8)
    return to_config_dict(job)
