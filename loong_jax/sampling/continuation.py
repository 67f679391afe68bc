"""What a round of a long video starts from.

``sampling.continuation`` is one of

- "reencode" (Loong section 3.4): ids from the middle of a clip were made with knowledge of the frames before them, so
  they are not what a clip starts with. The last frames are therefore decoded to pixels and encoded again as if a clip
  began there.
- "anchor": the same with the video's very first frame before the last ones.
- "ids": the last ids as they are.
- "window": the video's first ids and the last ones as they are, an attention sink and a sliding window
  (arXiv 2309.17453) by whole latent frames.
"""

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from loong_jax.config import SamplingConfig
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer


class History:
    """The first and last frames or ids of videos that grow; their size does not."""

    def __init__(self, sampling: SamplingConfig, tokenizer: VideoTokenizer):
        self._tokenizer = tokenizer
        self.is_of_pixels = sampling.continuation in ("reencode", "anchor")
        if self.is_of_pixels:
            num_first = 1 if sampling.continuation == "anchor" else 0
            self._ends = _Ends(num_first, sampling.reencode_frames - num_first)
        elif sampling.continuation == "window":
            self._ends = _Ends(sampling.sink_latents, sampling.window_latents)
        else:
            self._ends = _Ends(0, tokenizer.config.latent_frames(sampling.reencode_frames))

    def add(self, ids: Int[np.ndarray, "b n h w"], frames: UInt8[np.ndarray, "b t height width 3"]) -> None:
        """Append latent frames and what they show."""
        self._ends.add(frames if self.is_of_pixels else ids)

    def start(self, num_kept: int) -> Int[np.ndarray, "b num_kept h w"]:
        """Ids of the ``num_kept`` latent frames that the next round starts from."""
        if not self.is_of_pixels:
            return self._ends.take(num_kept)
        return self._tokenizer.encode(self._ends.take(self._tokenizer.config.pixel_frames(num_kept)))


class _Ends:
    """The first and the last few along axis 1 of an array that grows."""

    def __init__(self, num_first: int, num_last: int):
        self._num_first, self._num_last = num_first, num_last
        self._first = self._last = None

    def add(self, new: Shaped[np.ndarray, "b n ..."]) -> None:
        if self._last is None:
            self._first = self._last = new[:, :0]
        missing = self._num_first - self._first.shape[1]
        self._first = np.concatenate([self._first, new[:, :missing]], axis=1)
        # The first may be among the last, so that as many as there are can be taken.
        kept = self._num_first + self._num_last
        self._last = np.concatenate([self._last, new], axis=1)[:, -kept:]

    def take(self, count: int) -> Shaped[np.ndarray, "b count ..."]:
        num_first = min(self._num_first, count)
        last = self._last[:, self._last.shape[1] - (count - num_first) :]
        return np.concatenate([self._first[:, :num_first], last], axis=1)
