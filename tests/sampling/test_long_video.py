"""In which order a long video is sampled and shown, and that what is remembered of it does not grow."""

import numpy as np
import pytest

from loong_jax.config import DEBUG_TOKENIZER, SamplingConfig
from loong_jax.sampling.continuation import History
from loong_jax.sampling.long_video import Request, show
from loong_jax.vocab import LatentGrid


class Tokenizer:
    """Encodes a frame to its value, and writes down what is asked of it."""

    config = DEBUG_TOKENIZER

    def __init__(self):
        self.log = []

    def encode(self, video):
        return video[:, ::4, :1, :1, 0].astype(np.int32)

    def decode_chunk(self, ids, past=None):
        self.log.append("start over")
        frames, past = self.start_decoding(ids, past)
        return frames(), past

    def start_decoding(self, ids, past=None):
        number = int(ids[0, -1, 0, 0])
        self.log.append(f"start {number}")
        frames = ids.repeat(4 if past else 1, axis=1)[..., None].repeat(3, axis=-1).astype(np.uint8)

        def wait():
            self.log.append(f"wait {number}")
            return frames

        return wait, True


def test_a_latent_frame_is_asked_for_before_the_pixels_of_the_one_before_are_waited_for(monkeypatch):
    tokenizer = Tokenizer()
    request = Request([], [0], 9, SamplingConfig())

    def source(self, part, known):
        for number in range(part.num_new):
            tokenizer.log.append(f"sample {number}")
            yield np.full((1, 1, 1), number)

    monkeypatch.setattr("loong_jax.sampling.long_video._Replay.__call__", source)
    pieces = show(request, np.zeros((1, 3, 1, 1), np.int32), tokenizer, LatentGrid(17, 1, 1))
    assert len(next(pieces).frames[0]) == 1
    assert tokenizer.log == ["sample 0", "start 0", "sample 1", "wait 0"]
    assert len(next(pieces).frames[0]) == 4
    assert tokenizer.log[4:] == ["start 1", "sample 2", "wait 1"]


@pytest.mark.parametrize("continuation", ["reencode", "anchor", "ids", "window"])
def test_what_is_remembered_does_not_grow(continuation):
    sampling = SamplingConfig(continuation=continuation, window_latents=3, sink_latents=2)
    history = History(sampling, Tokenizer())
    for number in range(200):
        frames = np.full((1, 4 if number else 1, 8, 8, 3), number, np.uint8)
        history.add(np.full((1, 1, 1, 1), number), frames)
    held = sum(part.nbytes for part in (history._ends._first, history._ends._last))
    assert held <= 6 * frames[:, :1].nbytes
    expected = {"reencode": [198, 199], "anchor": [0, 199], "ids": [198, 199], "window": [0, 1, 197, 198, 199]}
    kept = expected[continuation]
    np.testing.assert_array_equal(history.start(len(kept)).reshape(-1), kept)
