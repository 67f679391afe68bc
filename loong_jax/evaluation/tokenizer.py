"""How good a trained tokenizer is on held-out clips: the numbers, and clips over their reconstructions to look at."""

from pathlib import Path

import jax
import numpy as np
from rich.progress import track

from loong_jax.config import EvaluateJob
from loong_jax.data.sources import make_source
from loong_jax.evaluation.reconstruction import codebook_usage, perplexity, psnr, ssim
from loong_jax.evaluation.report import format_table, write_report
from loong_jax.tokenizer.perceptual import load_weights, lpips
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.video import write_strip

_NUM_SHOWN = 8


def evaluate_tokenizer(job: EvaluateJob, workdir: Path) -> dict[str, float]:
    """Encode and decode ``num_clips`` held-out clips; writes results.json and samples/, prints and returns the means.

    PSNR (dB) is of each clip, SSIM and LPIPS of each frame; usage and perplexity are of the ids of all clips.

    Raises:
        ValueError: the tokenizer or the data cannot be read, or LPIPS has no weights.
    """
    weights = load_weights(job.lpips_weights, "lpips_weights") if job.measure_lpips else None
    tokenizer = VideoTokenizer.load((workdir / job.tokenizer_path).resolve())
    source = make_source(job.data, "test")
    measure = jax.jit(_scores)
    scores, ids, shown = [], [], []
    for index in track(range(job.num_clips), "held-out clips"):
        video = source[index]["video"]
        ids.append(tokenizer.encode(video))
        decoded = tokenizer.decode(ids[-1], len(video))
        scores.append(jax.device_get(measure(video, decoded, weights)) | {"psnr": psnr(video, decoded)})
        if index < _NUM_SHOWN:
            shown.append((video, decoded))
    num_codes = tokenizer.config.quantizer.num_codes
    results = {name: float(np.mean([score[name] for score in scores])) for name in sorted(scores[0])}
    results["codebook_usage"] = codebook_usage(np.stack(ids), num_codes)
    results["codebook_perplexity"] = perplexity(np.stack(ids), num_codes)
    write_strip(workdir / "samples" / "reconstruction", *map(np.stack, zip(*shown, strict=True)), fps=job.data.fps)
    write_report(workdir / "results.json", results)
    rows = [{"what": name, "value": f"{value:.4g}"} for name, value in results.items()]
    print(format_table(rows, ("what", "value")), flush=True)
    return results


def _scores(video, decoded, weights):
    video, decoded = (x.astype(np.float32) / 255 for x in (video, decoded))
    scores = {"ssim": ssim(video[None], decoded[None])[0]}
    if weights is not None:
        scores["lpips"] = lpips(weights, 2 * video - 1, 2 * decoded - 1).mean()
    return scores
