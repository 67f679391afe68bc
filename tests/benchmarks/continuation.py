"""How long a prompt's digit and color last, by the way that rounds continue a video and by top-k, on a trained model.

    python -m loong_jax.main --config=configs/demo.py --workdir=runs/demo
    python tests/benchmarks/continuation.py --model=runs/demo/stage3 --results=FILE.json [--picture=FILE.png]

Samples videos of the demo's held-out prompts with the demo's temperature and guidance: for each
``sampling.continuation`` with the demo's top-k, and for the default one with others. A judge of pixels reads every ten
seconds; a minute's share is the mean of its six. A cell (way, top-k, seconds, seed, model) that stands in FILE.json is
not sampled again, so that the same command goes on where it was stopped; --seeds=0 only shows what is there. Processes
of other seeds (--first-seed), a core for each, may fill the same file. With k = 1 nothing is drawn, all seeds are one.
Prints a table: means over the seeds, and the least and largest. The picture needs matplotlib. --model=package:digits is
the model that travels with the package.
"""

import argparse
import dataclasses
import fcntl
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import loong_jax
from loong_jax.config import SamplingConfig
from loong_jax.config_dict import load_job
from loong_jax.data.moving_digits import MovingDigits, Scene, canonical_caption
from loong_jax.evaluation.digits import digits_by_window
from loong_jax.evaluation.report import format_table

DEMO = load_job(Path(__file__).parents[2] / "configs", "demo")
SAMPLING = DEMO.stage3.sampling
BATCH = 32  # prompts that are sampled together: the keys and values of more do not fit a CPU's caches
WINDOW = 10  # seconds that the judge reads at once
WAYS = ("reencode", "anchor", "ids", "window")
TOP_K = (1, 5, 20, 100, 0)
SETTINGS = [(way, SAMPLING.top_k) for way in WAYS] + [(SAMPLING.continuation, top_k) for top_k in TOP_K]


def held_out(count: int, num_frames: int) -> list[dict]:
    """The demo's examples: what to ask for, and a real video of it."""
    data = DEMO.stage3.data
    source = MovingDigits("test", data.frame_size, num_frames, data.two_digit_share)
    return [source[index] for index in range(count)]


def windows(stream: Iterator[np.ndarray], num_frames: int) -> Iterator[np.ndarray]:
    """Videos [batch, num_frames, ...], one after another, of frames that come in any number."""
    held = None
    for frames in stream:
        held = frames if held is None else np.concatenate([held, frames], axis=1)
        while held.shape[1] >= num_frames:
            yield held[:, :num_frames]
            held = held[:, num_frames:]


def judge(stream: Iterator[np.ndarray], scenes: list[tuple[Scene, ...]], fps: float) -> dict:
    """Share of the videos with the right digit and the right color, for every window."""
    shares = {"digit": [], "color": []}
    for videos in windows(stream, round(fps * WINDOW)):
        read = [digits_by_window(video, scene, fps, WINDOW) for video, scene in zip(videos, scenes, strict=True)]
        for name, values in shares.items():
            values.append(float(np.mean([one[name] for one in read])))
    return shares


def run(model: str, results: Path, seconds: int, seeds: range, prompts: int) -> list[dict]:
    """All cells of such videos, those in ``results`` and those that were missing there."""
    pipe = loong_jax.load(model)
    examples = held_out(prompts, round(seconds * pipe.fps))
    scenes = [example["label"] for example in examples]
    texts = [canonical_caption(scene) for scene in scenes]

    def add(cell: dict, judged: Callable[[], dict]) -> None:
        if not any(cell.items() <= done.items() for done in read_cells(results)):
            add_cell(results, cell | judged())

    def sampled(seed: int, sampling: SamplingConfig) -> dict:
        batches = [slice(first, first + BATCH) for first in range(0, prompts, BATCH)]
        shares = [
            judge(pipe.stream(texts[batch], seed * prompts + batch.start, **vars(sampling)), scenes[batch], pipe.fps)
            for batch in batches
        ]
        weights = [len(texts[batch]) for batch in batches]
        return {name: np.average([one[name] for one in shares], axis=0, weights=weights).tolist() for name in shares[0]}

    size = {"seconds": seconds, "prompts": prompts}
    real = np.stack([example["video"] for example in examples])
    add({"way": "real", "top_k": None, "seed": 0} | size, lambda: judge(iter([real]), scenes, pipe.fps))
    for seed in seeds:
        for way, top_k in SETTINGS:
            if top_k == 1 and seed > 0:
                continue
            cell = {"way": way, "top_k": top_k, "seed": seed, "model": pipe.fingerprint} | size
            sampling = dataclasses.replace(SAMPLING, seconds=seconds, continuation=way, top_k=top_k)
            add(cell, functools.partial(sampled, seed, sampling))
    cells = [cell for cell in read_cells(results) if size.items() <= cell.items()]
    return [cell for cell in cells if cell.get("model") in (None, pipe.fingerprint)]


def read_cells(results: Path) -> list[dict]:
    return json.loads(results.read_text()) if results.exists() else []


def add_cell(results: Path, cell: dict) -> None:
    """Beside those that other processes have added meanwhile, and once where two had the same to do."""
    with open(results.with_suffix(".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cells = read_cells(results)
        partial = results.with_suffix(".partial")
        partial.write_text("[\n" + ",\n".join(map(json.dumps, [*cells, *[cell] * (cell not in cells)])) + "\n]\n")
        partial.replace(results)
    print(cell, flush=True)


def by_setting(cells: list[dict]) -> dict[tuple, dict[str, np.ndarray]]:
    """Shares [seeds, times] of digit and color for every (way, top-k); times are windows, or minutes of long videos."""
    found = {}
    for setting in [("real", None), *dict.fromkeys(SETTINGS)]:
        own = [cell for cell in cells if (cell["way"], cell["top_k"]) == setting]
        if own:
            shares = {name: np.array([cell[name] for cell in own]) for name in ("digit", "color")}
            found[setting] = {name: by_time(share, own[0]["seconds"]) for name, share in shares.items()}
    return found


def by_time(shares: np.ndarray, seconds: int) -> np.ndarray:
    return shares if seconds <= 60 else shares.reshape(len(shares), seconds // 60, -1).mean(axis=2)


def name_of(way: str, top_k: int | None) -> str:
    return "real clips" if way == "real" else f"{way}, k = {top_k or 'all'}"


def table(cells: list[dict]) -> str:
    """Right digits / right colors of each setting by time, in percent: means over the seeds, the least and largest."""
    rows = []
    for setting, shares in by_setting(cells).items():
        row = {"way": name_of(*setting), "seeds": len(shares["digit"])}
        for index, values in enumerate(zip(shares["digit"].T, shares["color"].T, strict=True)):
            row[time_of(index, cells[0]["seconds"])] = " / ".join(map(_percent, values))
        rows.append(row)
    return format_table(rows, tuple(rows[0]))


def _percent(values: np.ndarray) -> str:
    low, mean, high = (round(100 * value) for value in (values.min(), values.mean(), values.max()))
    return f"{mean}" if len(values) == 1 else f"{mean} ({low}-{high})"


def time_of(index: int, seconds: int) -> str:
    if seconds > 60:
        return f"minute {index + 1}"
    return f"{WINDOW * index} to {WINDOW * (index + 1)} s"


def draw(cells: list[dict], path: Path) -> None:
    """Means over the seeds against time, for the ways and for top-k; bars from the least to the largest."""
    from matplotlib import pyplot

    step = WINDOW if cells[0]["seconds"] <= 60 else 60
    found = by_setting(cells)
    of_top_k = [(SAMPLING.continuation, top_k) for top_k in sorted({SAMPLING.top_k, *TOP_K}, key=lambda k: k or 1e9)]
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), sharex=True, sharey="row", layout="constrained")
    colors = {("real", None): "0.6", (SAMPLING.continuation, SAMPLING.top_k): "C0"}  # which both columns have
    for column, settings in enumerate((SETTINGS[: len(WAYS)], of_top_k)):
        others = [setting for setting in settings if setting not in colors]
        for row, what in enumerate(("digit", "color")):
            axis = axes[row, column]
            shown = [setting for setting in [("real", None), *settings] if setting in found]
            for order, setting in enumerate(shown):
                share = 100 * found[setting][what]
                middle = step * (np.arange(share.shape[1]) + 0.5) + 0.012 * step * share.shape[1] * (order - 2)
                mean = share.mean(axis=0)
                bars = np.maximum([mean - share.min(axis=0), share.max(axis=0) - mean], 0)  # where rounding is below
                color = colors.get(setting) or f"C{others.index(setting) + 1}"
                axis.errorbar(
                    middle, mean, bars, marker="o", markersize=3, lw=1.2, color=color, label=name_of(*setting)
                )
            axis.grid(alpha=0.3)
            axis.set_ylabel(f"{what} right, %" if column == 0 else "")
        axes[1, column].set_xlabel("seconds")
        axes[1, column].legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="stage3 of a trained demo, or any other model of moving digits")
    parser.add_argument("--results", type=Path, required=True, help="what was found so far, and is added to")
    parser.add_argument("--picture", type=Path, help="PNG of the same")
    parser.add_argument("--seconds", type=int, default=60, help="10 to 60, or minutes")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=64)
    arguments = parser.parse_args()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    cells = run(arguments.model, arguments.results, arguments.seconds, seeds, arguments.prompts)
    print(table(cells))
    if arguments.picture:
        draw(cells, arguments.picture)


if __name__ == "__main__":
    main()
