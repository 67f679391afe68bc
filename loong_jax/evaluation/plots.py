"""Line plots as SVG that a page holds within itself."""

import html
import math
from collections.abc import Sequence

_WIDTH, _HEIGHT = 460, 240
_LEFT, _TOP, _RIGHT, _BOTTOM = 52, 34, 448, 196  # of the plot
_COLORS = ("#2a6fdb", "#d9730d", "#1f8a4c", "#b0399a")

# Of a line: where each value stands, and the value; None leaves a gap.
Line = tuple[Sequence[float], Sequence[float | None]]


def line_plot(title: str, lines: dict[str, Line], x_end: float, y_range: tuple[float, float] | None = None) -> str:
    """One plot of several named lines over seconds from 0 to ``x_end``; letters have the color of the text around.

    ``y_range`` is that of the values where it is not given.
    """
    ys = [y for _, values in lines.values() for y in values if y is not None]
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
    parts.append(f'<text x="{_RIGHT}" y="{_BOTTOM + 34}" text-anchor="end">seconds</text>')
    for index, (name, (at, values)) in enumerate(lines.items()):
        color = _COLORS[index % len(_COLORS)]
        for run in _unbroken(at, values):
            points = [place(*point) for point in run]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>' for x, y in points]
        x = _LEFT + 110 * index
        parts.append(f'<rect x="{x}" y="{_BOTTOM + 26}" width="14" height="4" fill="{color}"/>')
        parts.append(f'<text x="{x + 19}" y="{_BOTTOM + 34}">{html.escape(name)}</text>')
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" class="plot">{"".join(parts)}</svg>'


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
