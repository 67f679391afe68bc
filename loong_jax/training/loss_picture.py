"""The picture of loss by latent frame over a training: what Loong (section 3.3) calls the imbalance, to look at."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from loong_jax import video
from loong_jax.evaluation.plots import ticks, widened

_WIDTH, _HEIGHT = 960, 540
_LEFT, _TOP, _RIGHT, _BOTTOM = 70, 56, 830, 480  # of the plot
_SHARP = 3  # lines are drawn this many times larger, and made smaller
_MAX_POINTS = 200  # of a line; more are averaged
_MAX_NAMED = 18  # frames in the legend
_INK, _GRID = (40, 40, 40), (225, 225, 225)
_COLORS = np.array([(39, 60, 140), (20, 150, 160), (240, 165, 20), (200, 40, 40)])  # from the first frame to the last


def draw_loss_by_frame(records: list[dict]) -> dict[str, video.Image]:
    """The picture "loss_by_frame" of a training's records, uint8 [540, 960, 3]; nothing where no record has one.

    A line for each latent frame, the training loss in nats per id against the step, and a dot for each evaluation. Loss
    is that of the ids themselves, whatever the weights; a frame that a batch lacked (loss 0) is left out.
    """
    num_frames = max((len(record.get("frame_loss", ())) for record in records), default=0)
    train, held_out = (_curves(records, split, num_frames) for split in ("train", "eval"))
    if not len(train):
        return {}
    train = _averaged(train)
    both = np.concatenate([train, held_out]) if len(held_out) else train
    steps, losses = both[:, 0], both[:, 1:][~np.isnan(both[:, 1:])]
    axes = _Axes((steps.min(), steps.max()), (losses.min(), losses.max()) if len(losses) else (0, 1))
    colors = _colors(both.shape[1] - 1)

    large = Image.new("RGB", (_SHARP * _WIDTH, _SHARP * _HEIGHT), "white")
    pen = ImageDraw.Draw(large)
    axes.draw_grid(pen)
    for frame, color in enumerate(colors, start=1):
        for part in _unbroken(train[:, [0, frame]]):
            pen.line([axes.place(*point) for point in part], fill=color, width=2 * _SHARP, joint="curve")
            if len(part) == 1:
                pen.circle(axes.place(*part[0]), 2 * _SHARP, fill=color)
        for step, loss in held_out[:, [0, frame]][~np.isnan(held_out[:, frame])] if len(held_out) else ():
            pen.circle(axes.place(step, loss), 4 * _SHARP, fill=color, outline="white", width=_SHARP)
    picture = large.resize((_WIDTH, _HEIGHT), Image.Resampling.BOX)
    pen = ImageDraw.Draw(picture)
    axes.write_labels(pen)
    _write_legend(pen, colors)
    return {"loss_by_frame": np.asarray(picture)}


def _curves(records: list[dict], split: str, num_frames: int) -> Float[np.ndarray, "points 1+frames"]:
    """Step and loss of each frame; NaN for a frame that the batch lacked, or clips at that time."""
    found = [r for r in records if r["split"] == split and "frame_loss" in r]
    curves = np.full((len(found), 1 + num_frames), np.nan)
    for row, record in zip(curves, found, strict=True):
        losses = np.array(record["frame_loss"], float)
        row[0], row[1 : 1 + len(losses)] = record["step"], np.where(losses == 0, np.nan, losses)
    return curves


def _averaged(curves: Float[np.ndarray, "points columns"]) -> Float[np.ndarray, "fewer columns"]:
    """Means of points in a row; what is NaN in all of them stays NaN."""
    groups = np.array_split(curves, math.ceil(len(curves) / math.ceil(len(curves) / _MAX_POINTS)))
    counts = np.stack([(~np.isnan(group)).sum(axis=0) for group in groups])
    sums = np.stack([np.nansum(group, axis=0) for group in groups])
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _unbroken(curve: Float[np.ndarray, "points 2"]) -> list[np.ndarray]:
    """The runs of points without NaN."""
    gaps = np.flatnonzero(np.isnan(curve[:, 1]))
    parts = (part[~np.isnan(part[:, 1])] for part in np.split(curve, gaps))
    return [part for part in parts if len(part)]


def _colors(num_frames: int) -> list[tuple[int, int, int]]:
    at = np.linspace(0, len(_COLORS) - 1, num_frames)
    channels = [np.interp(at, np.arange(len(_COLORS)), channel) for channel in _COLORS.T]
    return [tuple(map(round, color)) for color in zip(*channels, strict=True)]


class _Axes:
    """From steps and losses to pixels."""

    def __init__(self, steps: tuple[float, float], losses: tuple[float, float]):
        self._steps, self._losses = widened(*steps, 0.0), widened(*losses, 0.04)
        self._step_ticks, self._loss_ticks = ticks(*self._steps, smallest=1), ticks(*self._losses)

    def place(self, step: float, loss: float, scale: int = _SHARP) -> tuple[float, float]:
        x = np.interp(step, self._steps, (_LEFT, _RIGHT))
        y = np.interp(loss, self._losses, (_BOTTOM, _TOP))
        return scale * float(x), scale * float(y)

    def draw_grid(self, pen: ImageDraw.ImageDraw) -> None:
        for loss in self._loss_ticks:
            pen.line([self.place(step, loss) for step in self._steps], fill=_GRID, width=_SHARP)
        for step in self._step_ticks:
            pen.line([self.place(step, loss) for loss in self._losses], fill=_GRID, width=_SHARP)
        low, high = self._losses
        corner = [self.place(self._steps[0], high), self.place(self._steps[0], low), self.place(self._steps[1], low)]
        pen.line(corner, fill=_INK, width=_SHARP)

    def write_labels(self, pen: ImageDraw.ImageDraw) -> None:
        font = ImageFont.load_default(14)
        for loss in self._loss_ticks:
            x, y = self.place(self._steps[0], loss, 1)
            pen.text((x - 8, y), f"{loss:.4g}", _INK, font, anchor="rm")
        for step in self._step_ticks:
            x, y = self.place(step, self._losses[0], 1)
            pen.text((x, y + 8), f"{step:,.0f}", _INK, font, anchor="mt")
        pen.text(((_LEFT + _RIGHT) / 2, _BOTTOM + 34), "step", _INK, font, anchor="mt")
        pen.text((12, 30), "nats per id", _INK, font, anchor="lt")
        title = "Loss by latent frame: training (lines), held-out (dots)"
        pen.text(((_LEFT + _RIGHT) / 2, 12), title, _INK, ImageFont.load_default(17), anchor="mt")


def _write_legend(pen: ImageDraw.ImageDraw, colors: Sequence[tuple[int, int, int]]) -> None:
    font = ImageFont.load_default(14)
    pen.text((_RIGHT + 20, 30), "latent frame", _INK, font, anchor="lt")
    for row, frame in enumerate(np.unique(np.linspace(0, len(colors) - 1, _MAX_NAMED).round().astype(int))):
        y = _TOP + 12 + 23 * row
        pen.line([(_RIGHT + 20, y), (_RIGHT + 50, y)], fill=colors[frame], width=3)
        pen.text((_RIGHT + 60, y), str(frame), _INK, font, anchor="lm")
