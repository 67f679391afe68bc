"""Small videos and images to test with."""

import functools
import io
from fractions import Fraction

import av
import numpy as np

RATE = 8


@functools.cache  # the encoder's threads do not always give the same bytes
def encode_video(
    frames: int,
    first: int = 0,
    *,
    step: int = 8,
    kind: str = "mp4",
    codec: str = "libx264",
    pixels: str = "yuv420p",
    side: int = 32,
) -> bytes:
    """Gray frames of brightness ``first``, ``first`` + ``step``, ... at 8 a second, a key frame every 4."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=RATE, options={"g": "4"})
        stream.height = stream.width = side
        stream.pix_fmt = pixels
        for value in (first + step * np.arange(frames)) % 256:
            frame = np.full((side, side, 3), value, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def encode_image(value: int, side: int = 32) -> bytes:
    """A gray PNG."""
    encoder = av.CodecContext.create("png", "w")
    encoder.height = encoder.width = side
    encoder.pix_fmt, encoder.time_base = "rgb24", Fraction(1)
    frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), value, np.uint8), format="rgb24")
    return b"".join(bytes(packet) for packet in encoder.encode(frame) + encoder.encode(None))
