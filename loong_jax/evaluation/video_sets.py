"""Sets of videos to measure: those of a folder, held-out clips of a source, and what a tokenizer makes of these."""

import collections
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from loong_jax.config import DataConfig
from loong_jax.data.folder import read_folder
from loong_jax.data.moving_digits import Scene, canonical_caption, parse_caption
from loong_jax.data.sources import make_source
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.video import Video
from loong_jax.video_file import EXTENSIONS, VideoFile

_KEPT_BEST = (".mkv", ".avi", ".mov", ".mp4", ".webm", ".gif")  # of files of one name
LOSSLESS = ("ffv1", "huffyuv", "ffvhuff", "utvideo", "rawvideo", "png")


@dataclasses.dataclass(frozen=True)
class Example:
    """One video of a set."""

    name: str
    video: Video
    prompt: str = ""
    scenes: tuple[Scene, ...] = ()  # what is to be seen, where the prompt is of the moving digits
    original: Video | None = None  # what the video should equal


class FolderVideos:
    """The first videos of a folder by name, at one size and rate, with their texts."""

    def __init__(
        self,
        path: str | Path,
        data: DataConfig,
        most: int,
        originals: "FolderVideos | None" = None,
        origin: str = "",
    ):
        """Look at the folder; nothing is decoded yet.

        Args:
            path: holds videos, and their texts in a table or in a file beside each; images are passed over.
            data: size and rate, and limits of what is read.
            most: videos that are taken; of files that differ in their extension alone, the one that keeps most.
            originals: where each video has one of the same name in there, they are pairs.
            origin: what is said of where they come from; empty: the folder's name.

        Raises:
            ValueError: there is no video.
        """
        media = [medium for medium in read_folder(path) if medium.content.suffix.lower() in EXTENSIONS]
        if not media:
            raise ValueError(f"Folder {path} holds no video: looked for {', '.join(EXTENSIONS)}.")
        self.origin, self.storage = origin or str(path), collections.Counter()
        media.sort(key=lambda medium: _KEPT_BEST.index(medium.content.suffix.lower()), reverse=True)
        self._all = {str(Path(medium.key).with_suffix("")): medium for medium in media}
        self._files = {name: self._all[name] for name in sorted(self._all)[:most]}
        self._data = data
        self._originals = self._paired(originals)
        self.has_pairs = self._originals is not None

    def _paired(self, originals: "FolderVideos | None") -> "FolderVideos | None":
        """The folder that has a video of each name, if it is one."""
        if originals is None:
            return None
        missing = sorted(self._files.keys() - originals._all.keys())
        if 0 < len(missing) < len(self._files):
            warnings.warn(
                f"{originals.origin} has no video {missing[0]} ({len(missing)} of {len(self._files)} names are not "
                "there): the videos are not compared one by one.",
                stacklevel=3,
            )
        return None if missing else originals

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[Example]:
        self.storage.clear()
        for name, medium in self._files.items():
            video, original = self._read(name), None
            if self._originals is not None:
                original = self._originals._read(name)
                both = min(len(video), len(original))
                video, original = video[:both], original[:both]
            yield Example(name, video, medium.caption, parse_caption(medium.caption), original)

    def _read(self, name: str) -> Video:
        with VideoFile(self._all[name].content, self._data.limits) as file:
            self.storage[file.codec] += 1
            return file.read(size=self._data.frame_size, fps=self._data.fps)


class HeldOutClips:
    """The first clips of a source's held-out split; their texts are the plainest ones where they are of digits."""

    def __init__(self, data: DataConfig, count: int, *, needs_caption: bool = False):
        """Open the source.

        Raises:
            ValueError: it is not there, or holds nothing that can be read.
        """
        self.origin, self.storage = f"held-out clips of {data.source}", collections.Counter()
        self._source = make_source(data, "test", num_examples=count, needs_caption=needs_caption)

    def __len__(self) -> int:
        return len(self._source)

    def __iter__(self) -> Iterator[Example]:
        for index in range(len(self)):
            example = self._source[index]
            scenes = example["label"]
            prompt = canonical_caption(scenes) if scenes else example["caption"]
            yield Example(f"{index:04d}", example["video"], prompt, scenes)


class Reconstructions:
    """What a tokenizer makes of clips; ``ids`` are those of the clips so far."""

    has_pairs = True

    def __init__(self, tokenizer: VideoTokenizer, clips: HeldOutClips):
        self.origin, self.storage, self.ids = f"reconstructions of {clips.origin}", collections.Counter(), []
        self._tokenizer, self._clips, self.num_codes = tokenizer, clips, tokenizer.config.quantizer.num_codes

    def __len__(self) -> int:
        return len(self._clips)

    def __iter__(self) -> Iterator[Example]:
        self.ids.clear()
        for example in self._clips:
            ids = self._tokenizer.encode(example.video)
            self.ids.append(np.asarray(ids))
            decoded = self._tokenizer.decode(ids, len(example.video))
            yield dataclasses.replace(example, video=decoded, original=example.video)


VideoSet = FolderVideos | HeldOutClips | Reconstructions
