"""Look at this machine before training on it: what works, what does not, and how to mend it.

    python -m loong_jax.main --config=configs/doctor.py --workdir=runs/doctor

Prints versions, devices, memory, the disk and its speed and the decoders of video, then trains a tiny tokenizer and a
tiny language model for two steps each and samples from them, each in a process of its own (a minute or two on a CPU).
`--config.full=False` leaves those out and takes seconds, as `:debug` does. Exit code 1 says that something is broken;
doctor.json in the workdir holds what was found.
"""

from loong_jax.config import DoctorJob
from loong_jax.config_dict import parse_variant, to_config_dict


def get_config(variant: str = ""):
    return to_config_dict(DoctorJob(full="debug" not in parse_variant(variant, ("debug",))))
