"""Settings of sampling: how the next id is chosen, and how a video is rolled out."""

import dataclasses
import math
import numbers
from collections.abc import Callable

from loong_jax.config.checks import require, require_choice, require_not_negative, require_positive

# One number for the whole clip, or a tuple with one for each latent frame, of which the last holds on.
Schedule = float | tuple[float, ...]
IntSchedule = int | tuple[int, ...]

_LONGEST = 24 * 60 * 60  # seconds of video; more is a slip of the hand
_MOST_CANDIDATES = 255  # times 2**24 rounds of a video, with a key each
_LEAST, _MOST = 1e-6, 1e6  # of what scores are divided by or multiplied with: within these none overflows


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """How the language model is kept and run to sample; int8 is half of bfloat16, and not quite the same model."""

    weights: str = "auto"  # "auto": as model.compute_dtype; "int8": with a scale for each output of a matrix
    cache: str = "auto"  # of keys and values; "int8": with a scale for each of them
    # Ids of a latent frame that a step guesses and checks at once, with the same ids as a result; 1: one after another.
    # Videos that are sampled together advance by as many as are right in all of them: for one or a few.
    parallel_ids: int = 1

    def __post_init__(self):
        require(self.parallel_ids > 0, "decoding.parallel_ids", self.parallel_ids, "it must be greater than 0")
        require_choice("decoding.weights", self.weights, ("auto", "int8"))
        require_choice("decoding.cache", self.cache, ("auto", "int8"))


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How a video is rolled out (Loong, section 3.4).

    A schedule is one number, or a tuple by latent frame of the clip: ``top_k=(400, 100, 20)`` is wide for the first
    frame and narrow from the third on.
    """

    seconds: float = 60.0
    temperature: Schedule = 1.0
    top_k: IntSchedule = 100  # 0: all codes
    top_p: Schedule = 1.0
    min_p: Schedule = 0.0
    guidance_scale: Schedule = 1.0  # 1: no guidance
    # Divides the odds of the code at the same place of the latent frame before: above 1 against videos that freeze.
    repetition_penalty: Schedule = 1.0
    negative_prompt: str = ""  # what guidance leads away from, in place of the null text
    # What a round starts from (sampling/continuation.py): "reencode", "anchor", "ids" or "window".
    continuation: str = "reencode"
    reencode_frames: int = 5  # pixel frames carried into the next round; of "ids" those whose ids are
    sink_latents: int = 1  # of "window": latent frames from the video's beginning
    window_latents: int = 8  # and from its end so far
    # Where the text changes: "continue" goes on from the frames before, "cut" begins a scene without them.
    text_change: str = "continue"
    candidates: int = 1  # of each round, of which the likeliest is kept; frames then come by the round
    # Of the rounds that continue a video, or a given image, where errors add up; 0: those above.
    continuation_temperature: Schedule = 0.0
    continuation_guidance_scale: Schedule = 0.0
    decoding: DecodingConfig = DecodingConfig()

    @property
    def continuing(self) -> "SamplingConfig":
        """The rules of the rounds that continue a video."""
        return dataclasses.replace(
            self,
            temperature=self.continuation_temperature or self.temperature,
            guidance_scale=self.continuation_guidance_scale or self.guidance_scale,
        )

    @property
    def is_guided(self) -> bool:
        """Whether the choice of any id needs the scores without the text too."""
        return any(scale != 1 for own in (self, self.continuing) for scale in by_frame(own.guidance_scale))

    def __post_init__(self):
        require_positive(self, "seconds", "reencode_frames", "window_latents", "candidates")
        require_not_negative(self, "sink_latents")
        require_choice("sampling.continuation", self.continuation, ("reencode", "anchor", "ids", "window"))
        require_choice("sampling.text_change", self.text_change, ("continue", "cut"))
        require(
            self.candidates <= _MOST_CANDIDATES, "sampling.candidates", self.candidates, f"at most {_MOST_CANDIDATES}"
        )
        require(self.seconds <= _LONGEST, "sampling.seconds", self.seconds, f"at most {_LONGEST}, a day")
        within = f"from {_LEAST:g} to {_MOST:g}"
        self._require("temperature", _is_within, within)
        self._require("top_k", lambda value: value >= 0, "at least 0", numbers.Integral)
        self._require("top_p", lambda value: 0 < value <= 1, "in (0, 1]")
        self._require("min_p", lambda value: 0 <= value <= 1, "in [0, 1]")
        self._require("guidance_scale", lambda value: 1 <= value <= _MOST, f"from 1 to {_MOST:g}")
        self._require("repetition_penalty", _is_within, within)
        open_temperature, open_scale = self.continuation_temperature == 0, self.continuation_guidance_scale == 0
        self._require(
            "continuation_temperature", lambda value: open_temperature or _is_within(value), f"{within}, or 0"
        )
        self._require(
            "continuation_guidance_scale",
            lambda value: open_scale or 1 <= value <= _MOST,
            f"from 1 to {_MOST:g}, or 0",
        )

    def _require(self, name: str, is_possible: Callable, allowed: str, kind: type = numbers.Real) -> None:
        schedule, what = getattr(self, name), "an integer" if kind is numbers.Integral else "a number"
        values = by_frame(schedule)
        is_right = all(isinstance(value, kind) and math.isfinite(value) and is_possible(value) for value in values)
        allowed = f"give {what} {allowed}, or a tuple of such by latent frame"
        require(is_right and len(values) > 0, f"sampling.{name}", schedule, allowed)


@dataclasses.dataclass(frozen=True)
class SamplingChanges:
    """What differs from a model's own ``SamplingConfig``, which its training has left with it; None: nothing."""

    seconds: float | None = None
    temperature: Schedule | None = None
    top_k: IntSchedule | None = None
    top_p: Schedule | None = None
    min_p: Schedule | None = None
    guidance_scale: Schedule | None = None
    repetition_penalty: Schedule | None = None
    negative_prompt: str | None = None
    continuation: str | None = None
    reencode_frames: int | None = None
    sink_latents: int | None = None
    window_latents: int | None = None
    text_change: str | None = None
    candidates: int | None = None
    continuation_temperature: Schedule | None = None
    continuation_guidance_scale: Schedule | None = None
    decoding: DecodingConfig = DecodingConfig()  # what suits this machine, whatever the model says

    def __post_init__(self):
        self.over(SamplingConfig())  # what is impossible in any case

    def over(self, own: SamplingConfig) -> SamplingConfig:
        """A model's own settings with these changes."""
        changes = {name: value for name, value in vars(self).items() if value is not None}
        return dataclasses.replace(own, **in_all_rounds(changes))


def in_all_rounds(changes: dict) -> dict:
    """Changes by name; a temperature or scale holds in rounds that continue a video too, unless they get their own."""
    continuing = {f"continuation_{name}": 0.0 for name in ("temperature", "guidance_scale") if name in changes}
    return continuing | changes


def _is_within(value: float) -> bool:
    return _LEAST <= value <= _MOST


def by_frame(schedule: Schedule | IntSchedule) -> tuple:
    """The values of a schedule by latent frame; the last holds on."""
    return schedule if isinstance(schedule, tuple) else (schedule,)
