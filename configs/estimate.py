"""Compile a training for TPUs that need not be there: what fits into their memory, and what they send each other?

    python -m loong_jax.main --config=configs/estimate.py --workdir=runs/estimate \
        --config.target=v5p:4x4x4 --config.experiment=stage3:7b

Needs `pip install "loong_jax[tpu]"` for the TPU compiler, and no TPU; minutes for each batch size. Prints, for one
device, the memory of parameters, optimizer and work, the bytes of each kind of collective, and what step time the
chip's rates allow at best; writes results.json. `--config.step=sampling` compiles the decoding loop,
`--config.target=cpu` asks the compiler of this machine; `--config.mesh`, `.remat`, `.attention` and `.length` change
the experiment. `:debug` compiles a tiny model.
"""

from pathlib import Path

from loong_jax.config import EstimateJob
from loong_jax.config_dict import parse_variant, to_config_dict


def get_config(variant: str = ""):
    configs = str(Path(__file__).parent)
    job = EstimateJob(configs=configs)
    if "debug" in parse_variant(variant, ("debug",)):
        job = EstimateJob(configs=configs, experiment="stage1:debug", target="cpu", batch_sizes=(8,))
    return to_config_dict(job)
