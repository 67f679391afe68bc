"""How much of the machine one video or picture may take, whatever is in its file."""

import dataclasses

from loong_jax.config.checks import require_positive


@dataclasses.dataclass(frozen=True)
class MediaLimits:
    """What is beyond is refused, as bad media are: of a file that is no accident, these are never reached."""

    max_pixels: int = 100_000_000  # of a frame
    max_frames: int = 200_000  # decoded for one clip, with those that lie before it
    max_seconds: float = 300.0  # to decode one clip
    max_mib: int = 4096  # of a file inside an archive, and of the frames that are read from one

    def __post_init__(self):
        require_positive(self, "max_pixels", "max_frames", "max_seconds", "max_mib")
