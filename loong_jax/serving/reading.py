"""From the JSON of a request to what the pipeline samples, or one sentence on what is wrong with it.

Nothing is compiled and no more is decoded than the limits allow.
"""

import base64
import binascii
import threading

import numpy as np

from loong_jax.config import MediaLimits, ServeJob, ServingLimits, in_all_rounds, require
from loong_jax.pipeline import Pipeline
from loong_jax.sampling.long_video import Request
from loong_jax.serving.messages import VideoRequest
from loong_jax.video import Image
from loong_jax.video_file import read_video

_MAX_DECODED_MIB = 512
_MAX_DECODING_SECONDS = 10.0


class RequestReader:
    """Reads requests for one model; safe to use from several threads, one of which reads at a time."""

    def __init__(self, pipe: Pipeline, job: ServeJob):
        self._pipe, self._limits, self._defaults = pipe, job.limits, vars(job.sampling.over(pipe.sampling))
        self._lock = threading.Lock()  # the pipeline keeps its compiled functions in a dictionary

    def __call__(self, asked: VideoRequest) -> Request:
        """What to sample.

        Raises:
            ValueError: a text, a number or the image is not possible, or beyond the limits.
        """
        with self._lock:
            return self._read(asked)

    def _read(self, asked: VideoRequest) -> Request:
        limits = self._limits
        count = 1 + len(asked.changes)
        require(count <= limits.max_segments, "the number of texts", count, f"at most {limits.max_segments}")
        for text in [asked.prompt, asked.negative_prompt or "", *(change.prompt for change in asked.changes)]:
            self._check_text(text)
        names = asked.model_fields_set & self._defaults.keys()
        chosen = {name: getattr(asked, name) for name in names if getattr(asked, name) is not None}
        seconds = chosen.get("seconds", self._defaults["seconds"])
        require(seconds <= limits.max_seconds, "seconds", seconds, f"at most {limits.max_seconds:g} here")
        for change in asked.changes:
            require(change.second < seconds, "second", change.second, f"the video ends at {seconds:g}")
        script = [(0.0, asked.prompt), *((change.second, change.prompt) for change in asked.changes)]
        image = None if asked.image is None else _read_image(asked.image, self._pipe.frame_size, limits)
        return self._pipe.request(script, asked.seed, image=image, **self._defaults | in_all_rounds(chosen))

    def _check_text(self, text: str) -> None:
        most = self._limits.max_prompt_length
        if len(text) > most:
            raise ValueError(f"A prompt of {len(text)} characters is too long: give at most {most}.")
        count, most = self._pipe.num_text_ids(text), self._pipe.generator.max_text_ids
        if count > most:
            raise ValueError(
                f"A prompt of {count} text ids is too long: the model reads {most}, so say it in fewer words."
            )


def _read_image(encoded: str, size: int, limits: ServingLimits) -> Image:
    """The middle square of an image file, uint8 [size, size, 3]."""
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("The image is not base64: encode the content of its file so.") from None
    bounds = MediaLimits(limits.max_image_pixels, 1, _MAX_DECODING_SECONDS, _MAX_DECODED_MIB)
    try:
        frames = read_video(content, size=size, num_frames=1, limits=bounds)
    except ValueError:
        most = f"{limits.max_image_pixels / 1e6:g} million pixels"
        raise ValueError(f"The image cannot be read: give a PNG, JPEG, WebP, GIF or BMP of at most {most}.") from None
    return np.ascontiguousarray(frames[0])
