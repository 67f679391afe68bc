"""The results as one HTML page: tables, plots and playing videos, all inside the file, so that it needs no network."""

import base64
import html
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loong_jax.evaluation.plots import line_plot
from loong_jax.evaluation.summary import METRICS
from loong_jax.video import Video, write_video

_STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); }
th { text-align: left; font-weight: 600; } td { white-space: nowrap; } .wide { overflow-x: auto; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.grid-of { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); }
.videos { grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); }
svg.plot { width: 100%; } svg .grid { stroke: var(--line); }
svg text { font-size: 11px; fill: currentColor; } svg text.title { font-weight: 600; font-size: 13px; }
video { width: 100%; image-rendering: pixelated; background: #000; } figure { margin: 0; } .quiet { opacity: .7; }
"""


def write_page(path: Path, report: dict[str, Any], shown: Sequence[tuple[str, str, Video]]) -> None:
    """Write the page of a report.

    Args:
        path: of the file.
        report: what report.json holds.
        shown: of each video to play its name, a line on it, and its frames.
    """
    videos = "".join(_figure(name, line, video, report["protocol"]["fps"]) for name, line, video in shown)
    parts = [
        f"<h1>{html.escape(report['videos']['from'])}</h1>",
        f"<p class=quiet>{html.escape(_origins(report))}</p>",
        f"<h2>Metrics</h2>{_table(metric_rows(report))}",
        f"<h2>Over time</h2><div class=grid-of>{''.join(_plots(report))}</div>" if _plots(report) else "",
        f"<h2>Videos</h2><div class='grid-of videos'>{videos}</div>",
        f"<h2>Each video</h2>{_table(report['each'])}",
        f"<h2>Protocol</h2>{_table([{'setting': k, 'value': _plain(v)} for k, v in report['protocol'].items()])}",
    ]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>Evaluation</title><style>{_STYLE}</style>"
    path.write_text(f"{head}<body>{''.join(parts)}</body></html>\n", encoding="utf-8")


def metric_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each metric: what it is, its values of both sets, and which way is better."""
    rows = []
    for name, (label, better) in METRICS.items():
        if name in report["videos"]["metrics"]:
            row = {"metric": label, "videos": _short(report["videos"]["metrics"][name])}
            if report["reference"] is not None:
                row["reference"] = _short(report["reference"]["metrics"].get(name))
            rows.append(row | {"better": better})
    return rows


def _origins(report: dict[str, Any]) -> str:
    def describe(part):
        return f"{part['count']} videos of {part['seconds']:.3g} s, {part['from']}"

    text = describe(report["videos"])
    return text if report["reference"] is None else f"{text}; compared with {describe(report['reference'])}."


def _plots(report: dict[str, Any]) -> list[str]:
    """A plot of each metric that has more than one window, and of the digits by second."""
    sides = {"videos": report["videos"], "reference": report["reference"]}
    plots = []
    for key in ("by_second", "by_window"):
        for name in {name: None for side in sides.values() if side for name in side[key]}:
            lines = {}
            for side, values in ((side, part[key].get(name)) for side, part in sides.items() if part):
                if values and sum(value is not None for value in values) > 1:
                    step = 1.0 if key == "by_second" else sides[side]["seconds"] / len(values)
                    lines[side] = (step * (np.arange(len(values)) + 0.5), values)
            if "videos" in lines:
                is_share = key == "by_second"
                label = f"{name} right, share of the videos" if is_share else (METRICS | _DRIFT)[name][0]
                end = max(times[0] + times[-1] for times, _ in lines.values())
                plots.append(f"<div>{line_plot(label, lines, end, (0.0, 1.0) if is_share else None)}</div>")
    return plots


_DRIFT = {"fvd_from_start": ("Frechet video distance from the first window", "lower")}


def _figure(name: str, line: str, video: Video, fps: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "video.mp4"
        write_video(file, video, fps)
        data = base64.b64encode(file.read_bytes()).decode()
    player = f'<video src="data:video/mp4;base64,{data}" autoplay loop muted controls playsinline></video>'
    text = f"{html.escape(name)}<br><span class=quiet>{html.escape(line)}</span>"
    return f"<figure>{player}<figcaption>{text}</figcaption></figure>"


def _table(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return ""
    columns = list({name: None for row in rows for name in row})
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(_cell(row.get(name)) for name in columns)}</tr>" for row in rows)
    return f"<div class=wide><table><tr>{head}</tr>{body}</table></div>"


def _cell(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"<td class=number>{_short(value)}</td>"
    return f"<td>{html.escape(_plain(value))}</td>"


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    return str(value)


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
