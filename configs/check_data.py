"""Look at a source before training on it: what it holds, what is wrong with it, how fast it is read.

    python -m loong_jax.main --config=configs/check_data.py --workdir=runs/check --config.data.source=folder:DIR

Reads data.num_frames frames of num_examples clips of each split, prints a table, and writes it to runs/check/data.json,
the list of bad media to bad_media.jsonl, and what the model will see to clips.png. With --config.tokenizer_path=DIR (a
tokenizer training, relative to the workdir) the picture shows each clip over what its ids decode to.
`:debug` reads a few clips of small frames.
"""

import dataclasses

from loong_jax.config import CheckDataJob
from loong_jax.config_dict import parse_variant, to_config_dict


def get_config(variant: str = ""):
    job = CheckDataJob()
    if "debug" in parse_variant(variant, ("debug",)):
        data = dataclasses.replace(job.data, frame_size=32, num_frames=5)
        job = dataclasses.replace(job, data=data, num_examples=16)
    return to_config_dict(job)
