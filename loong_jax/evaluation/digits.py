"""The moving-digits benchmark: reads digits, colors and directions back from videos and compares them with the prompt.

The judge knows how the data set is drawn (``data/moving_digits.py``) but has seen only its "train" digits. It looks at
one color at a time: the pixels of the wanted color say where the digit is, how it moves and, to a small classifier,
which digit it is. A digit in a wrong color is therefore not found, and counts as a wrong digit too.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage
from sklearn.svm import SVC

from loong_jax.data.moving_digits import COLORS, DIRECTIONS, Scene, digit_images

# Lengths are in 32nds of a frame, the grid that every video is reduced to first; digits are 12 wide.
_GRID = 32
_DIGIT = 12
_CROP = 15  # leaves a margin around a digit that is centered by its mass
_FREE_STEPS = 4  # frames before the first bounce

_MIN_SATURATION = 0.2  # of a pixel that counts as colored, where 1 is a pure color
_MIN_MASS = 8.0  # of one digit in one frame, in pure pixels; the thinnest has about 30
_MIN_SPEED = 0.5  # per frame; digits move by 2
_COLOR_SHARE = 0.7  # of the colored pixels must be in the wanted colors
_MOST = 0.7  # share of the frames of a window that must be right
_COMPACT = 0.5  # share of a color's mass that must lie in one digit's square

_COPIES = 8  # distorted copies of every digit to learn from
_LOOKS = 16  # frames of a window that the classifier sees, at most


@dataclasses.dataclass(frozen=True)
class Reading:
    """What was seen in the colors that a prompt names, in its order; None where there is too little of the color."""

    digits: tuple[int | None, ...]
    directions: tuple[str | None, ...]
    axes: tuple[int | None, ...]  # along which each moves: 0 is up and down, 1 is left and right
    color_right: bool  # all the named colors are there in most frames, and hardly any other


class DigitReader:
    """Reads moving digits; training it takes some seconds and always gives the same reader."""

    def __init__(self):
        """Train the classifier on the "train" digits, distorted as generated videos distort them."""
        images, labels = digit_images("train")
        crops = [_distorted_crops(images, np.random.default_rng(copy)) for copy in range(_COPIES)]
        self._classifier = SVC(C=10, gamma=4).fit(np.concatenate(crops), np.tile(labels, _COPIES))

    def read(self, video: UInt8[np.ndarray, "frames height width 3"], scenes: Sequence[Scene]) -> Reading:
        """Look for ``scenes`` in a clip.

        Directions are those of the first frames, before any digit can have bounced, so they mean something only where
        a video begins.

        Raises:
            ValueError: the video is not uint8, or not square with a side that is a multiple of 32 pixels.
        """
        masses = _color_masses(video)
        total = sum(masses.values()).sum((1, 2))
        shares = {color: mass.sum((1, 2)) / np.maximum(total, 1e-9) for color, mass in masses.items()}
        wanted = [scene.color for scene in scenes]
        right = sum(shares[color] for color in wanted) >= _COLOR_SHARE
        for color in wanted:
            right &= masses[color].sum((1, 2)) >= _MIN_MASS
        tracks = [_track(masses[color]) for color in wanted]
        return Reading(
            digits=tuple(self._digit(masses[color], track) for color, track in zip(wanted, tracks, strict=True)),
            directions=tuple(_direction(track) for track in tracks),
            axes=tuple(_axis(track) for track in tracks),
            color_right=bool(np.mean(right) >= _MOST),
        )

    def _digit(self, mass: np.ndarray, track: np.ndarray) -> int | None:
        seen = np.flatnonzero(~np.isnan(track[:, 0]))
        if len(seen) < _MOST * len(track):
            return None
        # Where digits overlap, the one behind loses mass: the fuller half of the frames shows it better.
        fuller = seen[np.argsort(-mass[seen].sum((1, 2)), kind="stable")][: (len(seen) + 1) // 2]
        chosen = fuller[:: -(-len(fuller) // _LOOKS)]
        return int(np.argmax(self._classifier.decision_function(_crops(mass[chosen], track[chosen])).mean(0)))


@functools.cache
def _reader() -> DigitReader:
    return DigitReader()


def digit_benchmark(
    videos: UInt8[np.ndarray, "videos frames height width 3"],
    scenes: Sequence[tuple[Scene, ...]],
    fps: float = 6.5,
    seconds: float = 10.0,
) -> dict:
    """Share of videos that show what was asked for, in their first and in their last ``seconds``.

    A video with two digits is right only if both are. Where videos are shorter than ``seconds``, both windows are the
    whole video.

    Returns:
        "num_videos"; the shares "digit_first", "color_first", "direction_first", "digit_last", "color_last"; and
        "videos", a list with one record per video: what was asked for and whether each of the five is right.

    Raises:
        ValueError: there are no videos, or not as many as scenes, or they are not uint8, square, in multiples of 32
            pixels.
    """
    if len(videos) != len(scenes) or not len(videos):
        raise ValueError(
            f"Got {len(videos)} videos and the scenes of {len(scenes)}: give one or more videos, each with its scenes."
        )
    window = max(1, round(fps * seconds))
    records = []
    for video, wanted in zip(videos, scenes, strict=True):
        first, last = (_reader().read(part, wanted) for part in (video[:window], video[-window:]))
        digits = tuple(scene.digit for scene in wanted)
        records.append(
            {
                "scenes": " and ".join(map(str, wanted)),
                "digit_first": first.digits == digits,
                "color_first": first.color_right,
                "direction_first": first.directions == tuple(scene.direction for scene in wanted),
                "digit_last": last.digits == digits,
                "color_last": last.color_right,
            }
        )
    names = [name for name in records[0] if name != "scenes"]
    shares = {name: float(np.mean([record[name] for record in records])) for name in names}
    return {"num_videos": len(records), **shares, "videos": records}


def digits_by_window(
    video: UInt8[np.ndarray, "frames height width 3"], scenes: tuple[Scene, ...], fps: float = 6.5, seconds: float = 1.0
) -> dict[str, list[bool]]:
    """Whether one video is right in each window of ``seconds``; what is over at its end belongs to the last.

    Returns:
        "digit", "color" and "axis", each with a value for every window. Digits bounce at the border, so that it is the
        axis of the prompt's direction that they keep.

    Raises:
        ValueError: the video is not uint8, square, in multiples of 32 pixels.
    """
    starts = np.arange(max(1, int(len(video) / (fps * seconds) + 1e-6))) * fps * seconds
    parts = np.split(video, np.round(starts[1:]).astype(int))
    readings = [_reader().read(part, scenes) for part in parts]
    axes = tuple(int(DIRECTIONS[scene.direction][1] != 0) for scene in scenes)
    return {
        "digit": [reading.digits == tuple(scene.digit for scene in scenes) for reading in readings],
        "color": [reading.color_right for reading in readings],
        "axis": [reading.axes == axes for reading in readings],
    }


def _color_masses(video: np.ndarray) -> dict[str, Float[np.ndarray, "frames 32 32"]]:
    """How much of each color every pixel of the 32 x 32 grid has: its saturation, given to the nearest of six hues."""
    frames, height, width, *_ = video.shape
    if video.dtype != np.uint8 or height != width or height % _GRID:
        raise ValueError(
            f"Got a {video.dtype} video of {height} x {width} pixels: moving digits are uint8, square, and a multiple "
            f"of {_GRID} pixels wide."
        )
    scale = height // _GRID
    pixels = video.reshape(frames, _GRID, scale, _GRID, scale, 3).mean((2, 4)) / 255
    # A channel at a time: NumPy takes long over an axis of three.
    channels = [np.ascontiguousarray(pixels[..., channel]) for channel in range(3)]
    low, high = (functools.reduce(extreme, channels) for extreme in (np.minimum, np.maximum))
    saturation = np.where(high - low >= _MIN_SATURATION, high - low, 0)
    # The nearest hue has on the channels above the middle of low and high.
    on = [channel > (low + high) / 2 for channel in channels]

    def is_nearest(color: Sequence[int]) -> np.ndarray:
        return functools.reduce(np.logical_and, [part == bool(value) for part, value in zip(on, color, strict=True)])

    return {name: saturation * is_nearest(color) for name, color in COLORS.items()}


def _track(mass: Float[np.ndarray, "frames 32 32"]) -> Float[np.ndarray, "frames 2"]:
    """Row and column of the center of the digit-sized square with the most mass; NaN where no digit stands out."""
    boxes = ndimage.uniform_filter(mass, (0, _DIGIT, _DIGIT), mode="constant").reshape(len(mass), -1)
    rows, columns = np.unravel_index(boxes.argmax(1), mass.shape[1:])
    grid = np.arange(mass.shape[1])
    near_row = np.abs(grid - rows[:, None]) <= _DIGIT / 2
    near_column = np.abs(grid - columns[:, None]) <= _DIGIT / 2
    local = mass * near_row[:, :, None] * near_column[:, None, :]
    total = local.sum((1, 2))
    center = np.stack([local.sum(2) @ grid, local.sum(1) @ grid], 1) / np.maximum(total, 1e-9)[:, None]
    found = (total >= _MIN_MASS) & (total >= _COMPACT * mass.sum((1, 2)))
    return np.where(found[:, None], center, np.nan)


def _direction(track: Float[np.ndarray, "frames 2"]) -> str | None:
    """Direction of the straight line through the first steps of a track."""
    steps = track[: _FREE_STEPS + 1]
    seen = np.flatnonzero(~np.isnan(steps[:, 0]))
    if len(seen) <= len(steps) / 2 or len(seen) < 2:
        return None
    speed = np.polyfit(seen, steps[seen], 1)[0]
    if np.abs(speed).max() < _MIN_SPEED:
        return None
    return max(DIRECTIONS, key=lambda name: speed @ np.array(DIRECTIONS[name]))


def _axis(track: Float[np.ndarray, "frames 2"]) -> int | None:
    """The axis along which a track moves more, from each frame to the next."""
    steps = np.abs(np.diff(track, axis=0))
    steps = steps[~np.isnan(steps[:, 0])]
    if len(steps) < 2:
        return None
    speeds = np.median(steps, axis=0)
    return int(speeds.argmax()) if speeds.max() >= _MIN_SPEED else None


def _crops(mass: Float[np.ndarray, "n h w"], track: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n features"]:
    """Squares around the centers, between pixels where need be, scaled to unit length."""
    offsets = np.arange(_CROP) - (_CROP - 1) / 2
    shape = (len(mass), _CROP, _CROP)
    rows = np.broadcast_to(track[:, 0, None, None] + offsets[:, None], shape)
    columns = np.broadcast_to(track[:, 1, None, None] + offsets, shape)
    frames = np.broadcast_to(np.arange(len(mass))[:, None, None], shape)
    crops = ndimage.map_coordinates(mass, [frames, rows, columns], order=1).reshape(len(mass), -1)
    return crops / np.maximum(np.linalg.norm(crops, axis=1, keepdims=True), 1e-9)


def _distorted_crops(images: Float[np.ndarray, "n 8 8"], rng: np.random.Generator) -> Float[np.ndarray, "n features"]:
    """Crops of the digits as a reader of a generated video meets them: moved, bent, blurred, faint and noisy."""
    mass = np.zeros((len(images), 2 * _DIGIT, 2 * _DIGIT))
    for image, canvas in zip(images, mass, strict=True):
        bend = np.eye(2) + rng.normal(0, 0.06, (2, 2))
        matrix = bend * (len(image) / _DIGIT)
        middle = (len(canvas) - 1) / 2 + rng.uniform(-2, 2, 2)
        ndimage.affine_transform(
            image, matrix, (len(image) - 1) / 2 - matrix @ middle, output=canvas, order=1, mode="constant"
        )
        canvas[:] = ndimage.gaussian_filter(canvas, rng.uniform(0, 1.5))
        canvas[:] = np.clip(canvas * rng.uniform(0.7, 1.3), 0, 1) ** rng.uniform(0.7, 1.4)
        canvas += rng.normal(0, rng.uniform(0, 0.1), canvas.shape)
    mass = np.where(mass >= _MIN_SATURATION, mass, 0)
    return _crops(mass, np.nan_to_num(_track(mass), nan=_DIGIT))
