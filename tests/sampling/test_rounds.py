"""The rounds of a long video, against a brute-force count of frames."""

import pytest

from loong_jax.config import ConfigError, SamplingConfig, TokenizerConfig
from loong_jax.sampling.rounds import Round, plan_rounds

TOKENIZER = TokenizerConfig()  # four frames a latent frame


def plan(num_frames, num_given=0, changes=(), clip_frames=17, **sampling):
    return list(plan_rounds(SamplingConfig(**sampling), TOKENIZER, clip_frames, num_frames, num_given, changes))


def test_a_minute_is_a_clip_and_rounds_that_keep_two_latent_frames():
    rounds = plan(390)
    assert rounds[:2] == [Round(0, 0, 0, 17), Round(1, 0, 2, 15)]
    assert [part.num_new for part in rounds] == [17, 15, 15, 15, 15, 15, 7]  # 65, five times 60, and 25 of 28


@pytest.mark.parametrize("continuation", ["reencode", "ids", "anchor", "window"])
@pytest.mark.parametrize("num_given", [0, 1, 5])
@pytest.mark.parametrize("changes", [(), (2, 9, 10, 55), (200,), (0, 30)])
def test_frames_add_up(continuation, num_given, changes):
    for num_frames in (1, 2, 5, 6, 64, 65, 66, 130, 321):
        options = dict(continuation=continuation, window_latents=6)
        shown = num_given
        rounds = plan(num_frames, num_given, changes, clip_frames=9, **options)
        for index, part in enumerate(rounds):
            assert shown < num_frames and part.index == index
            latents = (shown + 3) // 4
            assert part.num_kept == min(latents, 7 if continuation == "window" else 2)
            assert part.num_new >= 1 and part.num_kept + part.num_new <= 9
            assert part.segment == sum(change <= shown for change in changes)
            before = shown
            shown += 4 * part.num_new - (3 if shown == 0 else 0)
            # No latent frame but the last may reach past a change of the text.
            ends = [end for end in (*changes, num_frames) if end > before]
            assert shown - 4 < min(ends)
        assert shown >= num_frames


@pytest.mark.parametrize("continuation", ["reencode", "window"])
@pytest.mark.parametrize("num_given", [0, 5])
@pytest.mark.parametrize("changes", [(), (30,), (3, 9, 10, 55), (100, 101)])
def test_a_cut_begins_a_scene_that_keeps_nothing(continuation, num_given, changes):
    options = dict(continuation=continuation, window_latents=6, clip_frames=9)
    for num_frames in (1, 29, 31, 64, 130):
        shown, scene = num_given, num_given  # frames of the video, and of its scene
        segment = 0
        for part in plan(num_frames, num_given, changes, text_change="cut", **options):
            if part.segment > segment:
                scene, segment = 0, part.segment
            assert part.segment == sum(change <= shown for change in changes)
            assert part.num_kept == min((scene + 3) // 4, 7 if continuation == "window" else 2)
            assert part.num_frames(TOKENIZER) == 4 * part.num_new - (3 if scene == 0 else 0)
            ends = [end for end in (*changes, num_frames) if end > shown]
            scene, shown = scene + part.num_frames(TOKENIZER), shown + part.num_frames(TOKENIZER)
            assert shown - 4 < min(ends)
        assert shown >= num_frames
    assert plan(130, num_given, changes, text_change="cut") != plan(130, num_given, changes) or not changes


def test_what_fits_one_clip_needs_no_room_for_another():
    """So that a model of single images is sampled, too."""
    [only] = plan(17, reencode_frames=17, clip_frames=5)
    assert (only.num_kept, only.num_new) == (0, 5)
    [only] = plan(1, clip_frames=1)
    assert (only.num_kept, only.num_new) == (0, 1)
    [only] = plan(17, 1, continuation="window", clip_frames=5)
    assert (only.num_kept, only.num_new) == (1, 4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reencode_frames": 17, "clip_frames": 5}, "reencode_frames=17 leaves no room .* clip of 17"),
        ({"clip_frames": 1}, "trained on single images: it makes one frame"),
        ({"reencode_frames": 6}, "reencode_frames=6 .* 1 [+] a multiple of 4"),
        ({"continuation": "window", "window_latents": 16}, "sink_latents=1 and window_latents=16, 17 .* leave no room"),
    ],
)
def test_what_leaves_no_room_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        plan(100, **options)
