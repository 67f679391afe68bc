"""How many latent frames every round of a long video starts from and samples: pure integers."""

import dataclasses
from collections.abc import Iterator

from loong_jax.config import ConfigError, SamplingConfig, TokenizerConfig, require


@dataclasses.dataclass(frozen=True)
class Round:
    """One clip of the model: ``num_kept`` latent frames that it starts from, then ``num_new`` that are sampled.

    Without any kept it begins a scene: the first of its latent frames stands for a single frame.
    """

    index: int
    segment: int  # which of the texts it shows
    num_kept: int
    num_new: int

    def num_frames(self, tokenizer: TokenizerConfig) -> int:
        """Frames that the new ones stand for."""
        return self.num_new * tokenizer.temporal_factor if self.num_kept else tokenizer.pixel_frames(self.num_new)


def plan_rounds(
    sampling: SamplingConfig,
    tokenizer: TokenizerConfig,
    clip_frames: int,
    num_frames: int,
    num_given: int = 0,
    changes: tuple[int, ...] = (),
) -> Iterator[Round]:
    """The rounds of a video; one ends where its clip is full, its text changes, or the video is long enough.

    Args:
        sampling: says what a round keeps of the one before.
        tokenizer: how many frames a latent frame stands for.
        clip_frames: latent frames of the clips that the model was trained on.
        num_frames: frames of the whole video; what the last latent frame has too many is for the caller to cut.
        num_given: frames that the video begins with, 1 + a multiple of the temporal factor, or none.
        changes: frames from which on the second, third, ... text is shown, in order.

    Raises:
        ConfigError: a round would have no room for new frames.
    """
    most, frames = most_kept(sampling, tokenizer), tokenizer.pixel_frames(clip_frames)
    is_one_clip = not changes and num_frames <= frames
    if clip_frames == 1 and (num_given or not is_one_clip):
        raise ConfigError(
            "The model was trained on single images: it makes one frame of one text, sampling.seconds=0.01, and goes "
            "on from none; take the model of a later stage."
        )
    if most >= clip_frames and not is_one_clip:
        if sampling.continuation == "window":
            kept = f"sampling.sink_latents={sampling.sink_latents} and window_latents={sampling.window_latents}, {most}"
            full = f"{kept} latent frames, leave no room for new ones in a clip of {clip_frames}"
        else:
            kept = f"sampling.reencode_frames={sampling.reencode_frames}"
            full = f"{kept} leaves no room for new frames in a clip of {frames}"
        raise ConfigError(f"{full}: choose fewer.")
    return _rounds(sampling, tokenizer, clip_frames, num_frames, num_given, changes)


def most_kept(sampling: SamplingConfig, tokenizer: TokenizerConfig) -> int:
    """Latent frames that a round starts from where the video is long enough."""
    if sampling.continuation == "window":
        return sampling.sink_latents + sampling.window_latents
    frames, factor = sampling.reencode_frames, tokenizer.temporal_factor
    require((frames - 1) % factor == 0, "sampling.reencode_frames", frames, f"it must be 1 + a multiple of {factor}")
    return tokenizer.latent_frames(frames)


def _rounds(sampling, tokenizer, clip_frames, num_frames, num_given, changes) -> Iterator[Round]:
    shown, begin, index, before = num_given, 0, 0, 0
    ends = [*changes, num_frames]
    while shown < num_frames:
        segment = sum(shown >= change for change in changes)
        if segment > before and sampling.text_change == "cut":
            begin = shown  # of the scene
        seen = shown - begin
        num_kept = min(most_kept(sampling, tokenizer), tokenizer.latent_frames(seen) if seen else 0)
        missing = min(end for end in ends if end > shown) - shown
        num_new = -(-missing // tokenizer.temporal_factor) if seen else _latents_of(missing, tokenizer)
        part = Round(index, segment, num_kept, min(num_new, clip_frames - num_kept))
        yield part
        shown, index, before = shown + part.num_frames(tokenizer), index + 1, segment


def _latents_of(frames: int, tokenizer: TokenizerConfig) -> int:
    """Latent frames at the start of a video that stand for at least so many frames."""
    return 1 + -(-(frames - 1) // tokenizer.temporal_factor)
