"""Line plots as SVG, for a page that holds them within itself or for files of their own."""

import html
import math
from collections.abc import Sequence

_WIDTH, _HEIGHT = 460, 240
_LEFT, _TOP, _RIGHT, _BOTTOM = 52, 34, 448, 196  # of the plot
_COLORS = ("#2a6fdb", "#d9730d", "#1f8a4c", "#b0399a")
_LEGEND = 2  # names in a line of it

_FILE_STYLE = """
text { font: 11px system-ui, sans-serif; fill: #222; } text.title { font-weight: 600; font-size: 13px; }
.grid { stroke: #ddd; }
"""

# Of a line: where each value stands, and the value; None leaves a gap.
Line = tuple[Sequence[float], Sequence[float | None]]


def line_plot(
    title: str,
    lines: dict[str, Line],
    x_end: float,
    y_range: tuple[float, float] | None = None,
    *,
    x_label: str = "seconds",
    bands: dict[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> str:
    """One plot of several named lines from 0 to ``x_end``; letters have the color of the text around.

    ``y_range`` is that of the values where it is not given; ``bands`` are the least and largest values that are shaded
    around the lines of such names.
    """
    bands = bands or {}
    ys = [y for _, values in lines.values() for y in values if y is not None]
    ys += [y for sides in bands.values() for side in sides for y in side]
    x_range, y_range = (0.0, x_end), y_range or widened(min(ys), max(ys), 0.08)

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_range[0]) / (x_range[1] - x_range[0]), (y - y_range[0]) / (y_range[1] - y_range[0])
        return _LEFT + across * (_RIGHT - _LEFT), _BOTTOM - up * (_BOTTOM - _TOP)

    parts = [f'<text x="{_LEFT}" y="16" class="title">{html.escape(title)}</text>']
    for tick in ticks(*y_range):
        _, y = place(0, tick)
        parts.append(f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.6g}</text>')
    for tick in ticks(*x_range):
        x, _ = place(tick, y_range[0])
        parts.append(f'<text x="{x:.1f}" y="{_BOTTOM + 16}" text-anchor="middle">{tick:.6g}</text>')
    parts.append(f'<text x="{_RIGHT}" y="{_BOTTOM + 34}" text-anchor="end">{html.escape(x_label)}</text>')
    for index, (name, (at, values)) in enumerate(lines.items()):
        color = _COLORS[index % len(_COLORS)]
        if name in bands:
            low, high = ([place(*point) for point in zip(at, side, strict=True)] for side in bands[name])
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*low, *reversed(high)])
            parts.append(f'<polygon points="{path}" fill="{color}" fill-opacity="0.15"/>')
        for run in _unbroken(at, values):
            points = [place(*point) for point in run]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>' for x, y in points]
        x, y = _LEFT + 165 * (index % _LEGEND), _BOTTOM + 34 + 16 * (index // _LEGEND)
        parts.append(f'<rect x="{x}" y="{y - 8}" width="14" height="4" fill="{color}"/>')
        parts.append(f'<text x="{x + 19}" y="{y}">{html.escape(name)}</text>')
    height = _HEIGHT + 16 * ((len(lines) - 1) // _LEGEND)
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" class="plot">{"".join(parts)}</svg>'


def as_file(plot: str) -> str:
    """A plot as an SVG file, dark letters on white."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * _WIDTH}" '
    inside = f'<style>{_FILE_STYLE}</style><rect width="100%" height="100%" fill="white"/>'
    opening, closing, rest = plot.partition(">")
    return head + opening.removeprefix("<svg ") + closing + inside + rest + "\n"


def _unbroken(at: Sequence[float], values: Sequence[float | None]) -> list[list[tuple[float, float]]]:
    """The runs of points without a gap."""
    runs = [[]]
    for x, y in zip(at, values, strict=True):
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if run]


def widened(low: float, high: float, margin: float) -> tuple[float, float]:
    """The range with a margin on each side, a share of it; of some width even where it has none."""
    extra = margin * (high - low) if high > low else 0.5
    return low - extra, high + extra


def ticks(low: float, high: float, smallest: float = 0.0) -> list[float]:
    """Round numbers inside the range, five to ten of them, or fewer that lie ``smallest`` apart."""
    rough = (high - low) / 5
    unit = 10 ** math.floor(math.log10(rough))
    size = max(smallest, *(factor * unit for factor in (1, 2, 5) if factor * unit <= rough))
    return [size * count for count in range(math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9) + 1)]
