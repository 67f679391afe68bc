"""The unified vocabulary and the arithmetic of sequences: pure integers, no arrays, imports nothing of ours.

Ids: [0, num_text) text, then num_video video codes, then the ten special ids. With the full sizes of Loong (32,000
text, 8,192 video) there are 40,202 ids; a small model has fewer video codes and the same layout.
"""

import dataclasses

SPECIALS = (
    "pad",
    "begin_text",
    "end_text",
    "begin_image",
    "end_image",
    "begin_video",
    "end_video",
    "null_text",
    "continuation",
    "reserved",
)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Where each kind of id lives."""

    num_text: int = 32000
    num_video: int = 8192

    @property
    def size(self) -> int:
        """Ids in all: text, video and specials."""
        return self.num_text + self.num_video + len(SPECIALS)

    @property
    def video_start(self) -> int:
        """First video id; code c is id ``video_start + c``."""
        return self.num_text

    def special(self, name: str) -> int:
        """Id of the special token ``name``, one of ``SPECIALS``."""
        return self.num_text + self.num_video + SPECIALS.index(name)


@dataclasses.dataclass(frozen=True)
class LatentGrid:
    """Shape of a clip's ids: ``frames`` latent frames of ``height`` x ``width`` ids in raster order."""

    frames: int
    height: int
    width: int

    @property
    def ids_per_frame(self) -> int:
        """Ids of one latent frame."""
        return self.height * self.width

    @property
    def num_ids(self) -> int:
        """Ids of the whole clip."""
        return self.frames * self.ids_per_frame


# begin_text, end_text, begin_video and end_video around the text and video ids.
NUM_MARKERS = 4
