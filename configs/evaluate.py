"""Measure a trained tokenizer on held-out clips: PSNR, SSIM, LPIPS, use of the codebook.

    python -m loong_jax.main --config=configs/evaluate.py --workdir=runs/evaluate \
        --config.tokenizer_path=../tokenizer --config.data.source=folder:DIR

Prints a table and writes it to results.json, with clips over their reconstructions in samples/. Frames of another size
than those trained on are fine (--config.data.frame_size=256), and so are longer clips (--config.data.num_frames=65).
LPIPS needs `pip install -e ".[eval]"`, or --config.measure_lpips=False. `:debug` measures two small clips.
"""

from loong_jax.config import DataConfig, EvaluateJob
from loong_jax.config_dict import parse_variant, to_config_dict


def get_config(variant: str = ""):
    job = EvaluateJob()
    if "debug" in parse_variant(variant, ("debug",)):
        job = EvaluateJob(data=DataConfig(frame_size=32, num_frames=5), num_clips=2, measure_lpips=False)
    return to_config_dict(job)
