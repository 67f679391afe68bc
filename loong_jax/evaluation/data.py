"""What a source of data holds, what is wrong with it, how fast it is read, and a picture of what a model will see."""

import collections
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from loong_jax.config import CheckDataJob, DataConfig, MediaLimits, SourceName, parse_sources
from loong_jax.data.bad_media import FILTERED, BadMedium
from loong_jax.data.clips import Medium
from loong_jax.data.loader import read_in_order
from loong_jax.data.sources import make_source, open_media
from loong_jax.evaluation.report import format_table, write_report
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.video import contact_sheet, write_image, write_strip
from loong_jax.video_file import VideoFile

_NUM_SHOWN = 8


def check_data(job: CheckDataJob, workdir: Path) -> dict[str, dict]:
    """Read ``num_examples`` of each split of each source; writes data.json, bad_media.jsonl and clips.png.

    Raises:
        ValueError: a source is not there or is empty, or not one clip of it can be read.
    """
    data = dataclasses.replace(job.data, max_bad_share=1.0)
    tokenizer = VideoTokenizer.load((workdir / job.tokenizer_path).resolve()) if job.tokenizer_path else None
    results, bad, counts = {}, {}, {"train": 0, "test": 0}
    for name in parse_sources("data.source", data.source):
        for split in counts:
            results[f"{name} {split}"], found = _media(name, data, split, job.num_examples)
            bad |= found
            counts[split] += results[f"{name} {split}"].get("media", job.num_examples)
    bad_list = workdir / "bad_media.jsonl"
    bad_list.unlink(missing_ok=True)
    clips = {}
    for split, num_media in counts.items():
        results[f"clips {split}"], clips[split] = _clips(data, split, min(job.num_examples, num_media), bad_list)
    if bad_list.exists():
        bad |= {row["key"]: row for row in map(json.loads, bad_list.read_text(encoding="utf-8").splitlines())}
    if bad:
        bad_list.write_text("".join(json.dumps(row) + "\n" for row in bad.values()), encoding="utf-8")
        results["passed over"] = dict(collections.Counter(row["reason"] for row in bad.values()).most_common())
    shown = clips["train"]
    if tokenizer is None:
        write_image(workdir / "clips.png", contact_sheet(shown, columns=min(8, len(shown[0]))))
    else:
        decoded = [tokenizer.decode(tokenizer.encode(clip), len(clip)) for clip in shown]
        write_strip(workdir / "clips", np.stack(shown), np.stack(decoded), fps=data.fps)
    write_report(workdir / "data.json", results)
    for title, values in results.items():
        rows = [{"what": what, "value": _text(value)} for what, value in values.items()]
        print(f"\n{title}\n{format_table(rows, ('what', 'value'))}", flush=True)
    print(f"\nA picture of the clips is in {workdir / 'clips.png'}.")
    if any(values.get("without caption") for values in results.values()):
        print("A language model passes over what has no caption, unless --config.data.require_caption=False.")
    if bad:
        print(f"What is passed over is listed in {bad_list}.")
    num_media = sum(min(job.num_examples, count) for count in counts.values())
    if verdict := _verdict(list(bad.values()), num_media, job.data.max_bad_share):
        print(verdict)
    return results


def _verdict(bad: list[dict], num_media: int, most: float) -> str:
    """Whether a training on so many media would stop because of the damaged ones among them."""
    damaged = sum(row["reason"] not in FILTERED for row in bad)
    if damaged <= most * num_media:
        return ""
    return (
        f"A training would stop: {damaged} of {num_media} are damaged, more than data.max_bad_share={most:g} allows. "
        "Remove or repair them, or raise that."
    )


def _media(name: SourceName, data: DataConfig, split: str, most: int) -> tuple[dict[str, Any], dict[str, dict]]:
    """Facts of up to ``most`` media, evenly spread, and which of them are bad, as in bad_media.jsonl."""
    if name.kind == "moving_digits":
        return {"what": "embedded digits, drawn as they are needed"}, {}
    media, places = open_media(name, data, split)
    chosen = [places[int(i)] for i in np.linspace(0, len(places) - 1, min(most, len(places)))]
    facts: dict[str, list[float]] = collections.defaultdict(list)
    sizes, bad, without_caption = collections.Counter(), {}, 0
    for place in track(chosen, f"{name.kind} {split}"):
        key = f"entry {place}"
        try:
            medium = media[place]
            key = medium.key
            seconds, fps, size = _describe(medium, data.limits)
        except ValueError as error:
            reason = error.reason if isinstance(error, BadMedium) else "unreadable"
            bad[key] = {"key": key, "reason": reason, "detail": str(error)}
            continue
        without_caption += not medium.caption
        sizes[f"{size[0]}x{size[1]}"] += 1
        facts["caption characters"].append(len(medium.caption))
        facts["seconds"] += [] if seconds is None else [seconds]
        facts["frames per second"] += [] if fps is None else [fps]
    return {
        "media": len(places),
        "looked at": len(chosen),
        "cannot be opened": len(bad),
        "without caption": without_caption,
        "width x height": dict(sizes.most_common(5)),
    } | {what: _spread(values) for what, values in facts.items() if values}, bad


def _describe(medium: Medium, limits: MediaLimits) -> tuple[float | None, float | None, tuple[int, int]]:
    """Seconds, frames per second, (width, height)."""
    if isinstance(medium.content, np.ndarray):
        frames, height, width = medium.content.shape[:3]
        return (frames / medium.fps if medium.fps else None), medium.fps, (width, height)
    with VideoFile(medium.content, limits) as file:
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
