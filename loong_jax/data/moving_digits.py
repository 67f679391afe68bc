"""The embedded data set: real handwritten digits in color, moving, with captions.

The digits are scikit-learn's 1,797 images of 8x8 pixels (UCI optical recognition of handwritten digits). Every example
is a function of (seed, split, index) alone, so that it is a random-access source like any other.

Held out for the "test" split: every fifth image of each digit, and about an eighth of the (digit, color, direction)
triples, so that a held-out prompt was never trained on with any image.
"""

import dataclasses
import functools
import itertools
import re

import numpy as np
from scipy import ndimage
from sklearn.datasets import load_digits

COLORS = {
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "cyan": (0, 1, 1),
    "magenta": (1, 0, 1),
}
# (rows, columns) per step.
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# In units of a 32-pixel frame: digits are 12 pixels wide, keep 2 from the border, move two a frame, and start on every
# eighth, so that every fourth frame shows them at the same place within the tokenizer's cells of 8 pixels.
_UNITS = 32
_DIGIT = 12
_MARGIN = 2
_TRAVEL = _UNITS - _DIGIT - 2 * _MARGIN
_SPEED = 2
_GRID = 8
_FREE_STEPS = 4  # frames before the first bounce, at least

_ONE_DIGIT = (
    "a {color} {digit} moves {direction}",
    "the digit {digit} in {color} is moving {direction}",
    "a {digit}, {color}, drifting {direction}",
    "{color} {digit} going {direction}",
    "a video of a {color} {digit} that moves {direction} first",
    "the {color} number {digit} heads {direction}",
)
# Without them a small model learns scenes by heart and misreads the word for the direction in those it never saw.
_LEFT_OUT = (
    "a {color} digit moves {direction}",
    "a {color} digit going {direction}",
)
_LEFT_OUT_SHARE = 0.3
_TWO_DIGITS = (
    "a {color} {digit} moves {direction} and a {color2} {digit2} moves {direction2}",
    "a {color} {digit} going {direction}, a {color2} {digit2} going {direction2}",
    "two digits: {color} {digit} heads {direction}, {color2} {digit2} heads {direction2}",
)
_CANONICAL_SHARE = 1 / 3
_CANONICAL = re.compile(rf"a (?P<color>{'|'.join(COLORS)}) (?P<digit>\d) moves (?P<direction>{'|'.join(DIRECTIONS)})")


@dataclasses.dataclass(frozen=True)
class Scene:
    """One digit of a clip and how it moves before its first bounce."""

    digit: int
    color: str
    direction: str

    def __str__(self) -> str:
        return f"{self.color} {self.digit} {self.direction}"


def canonical_caption(scenes: tuple[Scene, ...]) -> str:
    """The plainest caption, e.g. "a red 7 moves left and a blue 3 moves up"."""
    return " and ".join(f"a {scene.color} {scene.digit} moves {scene.direction}" for scene in scenes)


def parse_caption(caption: str) -> tuple[Scene, ...]:
    """The scenes of a plainest caption; none where it is another text."""
    found = [_CANONICAL.fullmatch(part.strip()) for part in caption.split(" and ")]
    if None in found:
        return ()
    return tuple(Scene(int(match["digit"]), match["color"], match["direction"]) for match in found)


@functools.cache
def held_out_triples() -> frozenset[Scene]:
    """Scenes that the "train" split never shows: 30 of 240, three of each digit."""
    looks = list(itertools.product(COLORS, DIRECTIONS))
    return frozenset(
        Scene(digit, *looks[index])
        for digit in range(10)
        for index in np.random.default_rng(digit).permutation(len(looks))[: len(looks) // 8]
    )


@functools.cache
def digit_images(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The digits of a split: float32 images [n, 8, 8] in [0, 1], and labels [n].

    Raises:
        ValueError: ``split`` is neither "train" nor "test".
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r}: moving_digits has 'train' and 'test'.")
    digits = load_digits()
    is_test = np.zeros(len(digits.target), bool)
    for digit in range(10):
        is_test[np.flatnonzero(digits.target == digit)[::5]] = True
    chosen = is_test if split == "test" else ~is_test
    return (digits.images[chosen] / 16).astype(np.float32), digits.target[chosen]


class MovingDigits:
    """A random-access source of {"video": uint8 [t, h, w, 3], "caption": str, "key": str, "label": scenes}."""

    def __init__(
        self,
        split: str,
        frame_size: int,
        num_frames: int,
        two_digit_share: float = 0.2,
        num_examples: int = 1_000_000,
        seed: int = 0,
    ):
        """Describe the source; nothing is rendered yet.

        Raises:
            ValueError: ``split`` is neither "train" nor "test", or ``frame_size`` is not a multiple of 32 pixels.
        """
        digit_images(split)  # checks the split
        if frame_size % _UNITS or frame_size <= 0:
            raise ValueError(f"frame_size={frame_size}: moving_digits is drawn at multiples of {_UNITS} pixels.")
        self._split, self._num_frames, self._seed = split, num_frames, seed
        self._scale = frame_size // _UNITS
        self._two_digit_share = two_digit_share
        self._num_examples = num_examples
        held_out = held_out_triples()
        every = (Scene(*triple) for triple in itertools.product(range(10), COLORS, DIRECTIONS))
        self._scenes = [scene for scene in every if (scene in held_out) == (split == "test")]

    def __len__(self) -> int:
        return self._num_examples

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self._num_examples:
            raise IndexError(f"example {index} of {self._num_examples}")
        rng = np.random.default_rng([self._seed, self._split == "test", int(index)])
        scenes = self._choose_scenes(rng)
        caption = _caption(rng, scenes)
        video = render(scenes, self._split, self._scale, self._num_frames, rng)
        return {"video": video, "caption": caption, "key": f"{self._split}/{index}", "label": scenes}

    def _choose_scenes(self, rng: np.random.Generator) -> tuple[Scene, ...]:
        first = self._scenes[rng.integers(len(self._scenes))]
        if rng.random() >= self._two_digit_share:
            return (first,)
        others = [s for s in self._scenes if s.digit != first.digit and s.color != first.color]
        return first, others[rng.integers(len(others))]


def render(scenes: tuple[Scene, ...], split: str, scale: int, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a clip, uint8 [num_frames, 32 x scale, 32 x scale, 3], with images and start positions chosen by ``rng``."""
    size = _UNITS * scale
    video = np.zeros((num_frames, size, size, 3), np.uint8)
    images = _sprites(split, scale)
    _, labels = digit_images(split)
    for scene in scenes:
        sprite = images[rng.choice(np.flatnonzero(labels == scene.digit))]
        colored = sprite[..., None] * np.array(COLORS[scene.color], np.uint8)
        rows, columns = (scale * (_MARGIN + path) for path in _paths(scene.direction, num_frames, rng))
        side = len(sprite)
        for frame, row, column in zip(video, rows, columns, strict=True):
            window = frame[row : row + side, column : column + side]
            np.maximum(window, colored, out=window)
    return video


def _paths(direction: str, num_frames: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Row and column of the digit's corner in every frame, from the margin on, bouncing at the border."""
    paths = []
    for step in DIRECTIONS[direction]:
        velocity = _SPEED * step
        free = _FREE_STEPS * abs(velocity)
        start = _GRID * rng.integers(free // _GRID, _TRAVEL // _GRID + 1)  # room ahead when moving towards 0
        start = _TRAVEL - start if velocity > 0 else start
        unfolded = (start + velocity * np.arange(num_frames)) % (2 * _TRAVEL)
        paths.append(_TRAVEL - np.abs(_TRAVEL - unfolded))
    return paths


@functools.cache
def _sprites(split: str, scale: int) -> np.ndarray:
    """All digits of a split at the size they are drawn, uint8 [n, 12 x scale, 12 x scale]."""
    images, _ = digit_images(split)
    factor = _DIGIT * scale / images.shape[1]
    smooth = ndimage.zoom(images, (1, factor, factor), order=1, grid_mode=True, mode="nearest")
    return np.round(255 * np.clip(1.15 * smooth, 0, 1)).astype(np.uint8)


def _caption(rng: np.random.Generator, scenes: tuple[Scene, ...]) -> str:
    if rng.random() < _CANONICAL_SHARE:
        return canonical_caption(scenes)
    phrasings = _ONE_DIGIT if len(scenes) == 1 else _TWO_DIGITS
    if len(scenes) == 1 and rng.random() < _LEFT_OUT_SHARE / (1 - _CANONICAL_SHARE):
        phrasings = _LEFT_OUT
    values = {}
    for suffix, scene in zip(("", "2"), scenes, strict=False):
        digit = WORDS[scene.digit] if rng.random() < 0.25 else scene.digit
        values |= {f"digit{suffix}": digit, f"color{suffix}": scene.color, f"direction{suffix}": scene.direction}
    return phrasings[rng.integers(len(phrasings))].format(**values)
