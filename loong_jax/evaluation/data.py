"""What a source of data holds, what is wrong with it, how fast it is read, and a picture of what a model will see."""

import collections
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from loong_jax.config import CheckDataJob, DataConfig, SourceName, parse_sources
from loong_jax.data.bad_media import BadMedium
from loong_jax.data.clips import Medium
from loong_jax.data.loader import read_in_order
from loong_jax.data.sources import make_source, open_media
from loong_jax.evaluation.report import format_table, write_report
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.video import VideoFile, contact_sheet, write_image, write_strip

_NUM_SHOWN = 8


def check_data(job: CheckDataJob, workdir: Path) -> dict[str, dict]:
    """Read ``num_examples`` of each split of each source; writes data.json, bad_media.jsonl and clips.png.

    Raises:
        ValueError: a source is not there or is empty, or not one clip of it can be read.
    """
    data = dataclasses.replace(job.data, max_bad_share=1.0)
    tokenizer = VideoTokenizer.load((workdir / job.tokenizer_path).resolve()) if job.tokenizer_path else None
    bad_list = workdir / "bad_media.jsonl"
    bad_list.unlink(missing_ok=True)
    results = {}
    for name in parse_sources("data.source", data.source):
        for split in ("train", "test"):
            results[f"{name} {split}"] = _media(name, data, split, job.num_examples)
    results["clips train"], clips = _clips(data, "train", job.num_examples, bad_list)
    results["clips test"], _ = _clips(data, "test", job.num_examples, bad_list)
    if tokenizer is None:
        write_image(workdir / "clips.png", contact_sheet(clips, columns=min(8, len(clips[0]))))
    else:
        decoded = [tokenizer.decode(tokenizer.encode(clip), len(clip)) for clip in clips]
        write_strip(workdir / "clips", np.stack(clips), np.stack(decoded), fps=data.fps)
    write_report(workdir / "data.json", results)
    for title, values in results.items():
        rows = [{"what": what, "value": _text(value)} for what, value in values.items()]
        print(f"\n{title}\n{format_table(rows, ('what', 'value'))}", flush=True)
    print(f"\nA picture of the clips is in {workdir / 'clips.png'}.")
    return results


def _media(name: SourceName, data: DataConfig, split: str, most: int) -> dict[str, Any]:
    """Facts of up to ``most`` media, evenly spread."""
    if name.kind == "moving_digits":
        return {"media": "embedded digits, drawn as they are needed"}
    media, places = open_media(name, data, split)
    chosen = [places[int(i)] for i in np.linspace(0, len(places) - 1, min(most, len(places)))]
    facts, reasons = collections.defaultdict(list), collections.Counter()
    sizes = collections.Counter()
    for place in track(chosen, f"{name.kind} {split}"):
        try:
            medium = media[place]
            seconds, fps, size = _describe(medium)
        except BadMedium as error:
            reasons[error.reason] += 1
        except ValueError:
            reasons["unreadable"] += 1
        else:
            facts["caption characters"].append(len(medium.caption))
            sizes[f"{size[0]}x{size[1]}"] += 1
            if seconds is not None:
                facts["seconds"].append(seconds)
            if fps is not None:
                facts["frames per second"].append(fps)
    return {
        "media": len(places),
        "looked at": len(chosen),
        "bad": dict(reasons),
        "without caption": sum(length == 0 for length in facts["caption characters"]),
        "width x height": dict(sizes.most_common(5)),
    } | {what: _spread(values) for what, values in facts.items()}


def _describe(medium: Medium) -> tuple[float | None, float | None, tuple[int, int]]:
    """Seconds, frames per second, (width, height)."""
    if isinstance(medium.content, np.ndarray):
        frames, height, width = medium.content.shape[:3]
        return (frames / medium.fps if medium.fps else None), medium.fps, (width, height)
    with VideoFile(medium.content) as file:
        seconds = file.duration if medium.stop is None else medium.stop - medium.start
        return seconds, file.fps, file.size


def _spread(values: list[float]) -> dict[str, float]:
    return {"least": min(values), "median": float(np.median(values)), "most": max(values)}


def _clips(data: DataConfig, split: str, count: int, bad_list: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """How fast clips are read, and a few of them."""
    source = make_source(data, split, num_examples=count, bad_list=bad_list)
    shown, frames, start = [], 0, time.perf_counter()
    for example in track(read_in_order(source, range(count), data), f"clips {split}", total=count):
        frames += len(example["video"])
        if len(shown) < _NUM_SHOWN:
            shown.append(example["video"])
    seconds = time.perf_counter() - start
    return {
        "clips read": count,
        "clips per second": round(count / seconds, 1),
        "frames per second": round(frames / seconds, 1),
    }, shown


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{key} {item:.4g}" if isinstance(item, float) else f"{key} {item}" for key, item in value.items()
        )
    return f"{value:.4g}" if isinstance(value, float) else str(value)
