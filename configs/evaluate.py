"""Measure videos: what a tokenizer makes of held-out clips, what a model samples, or a folder's.

    python -m loong_jax.main --config=configs/evaluate.py --workdir=runs/evaluate \
        --config.tokenizer_path=../tokenizer --config.data.source=folder:DIR

With `--config.model_path=../stage3` it samples held-out prompts of the source, with `--config.videos=DIR` it takes the
videos of a folder, at data.frame_size and data.fps, and compares them with `--config.reference=DIR`, or with held-out
clips, `--config.reference=held_out`.

Prints a table and writes it to report.json, with plots and playing videos in report.html, one file that needs no
network: Frechet video distance (evaluation/frechet.py has the protocol) and its drift over time; PSNR, SSIM and LPIPS
where videos of the same name are pairs, and of a tokenizer, with the use of its codebook; flickering, smoothness and
amount of motion; CLIPSIM with your CLIP (--config.clip_path=DIR); digits, colors and directions where texts are of the
moving digits, as "a red 7 moves left".

FVD and LPIPS need `pip install "loong_jax[eval]"`, or --config.measure_fvd=False --config.measure_lpips=False. On two
CPU cores FVD takes two seconds for a clip, of which every ten seconds of each video are one. `:debug` measures two
small clips.
"""

from loong_jax.config import DataConfig, EvaluateJob
from loong_jax.config_dict import parse_variant, to_config_dict


def get_config(variant: str = ""):
    job = EvaluateJob()
    if "debug" in parse_variant(variant, ("debug",)):
        data = DataConfig(frame_size=32, num_frames=5)
        job = EvaluateJob(data=data, num_videos=2, measure_fvd=False, measure_lpips=False)
    return to_config_dict(job)
