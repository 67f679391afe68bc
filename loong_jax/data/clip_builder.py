"""Our own data set format: video files and captions in ArrayRecord shards, through TensorFlow Datasets."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from loong_jax.video_file import VideoFile

# (key, a file or its content, caption); the key is unique.
Clip = tuple[str, str | Path | bytes, str]


class ClipBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set with the features key, video (the bytes of a file) and caption, which ``tfds:`` sources read.

    Derive from it and return, say, ``{"train": self._generate_examples(clips)}`` from ``_split_generators``.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, **kwargs):
        """Take tfds's own arguments; the file format is ArrayRecord unless they say otherwise."""
        super().__init__(**{"file_format": "array_record"} | kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        video = tfds.features.Tensor(shape=(), dtype=np.object_)
        features = {"key": tfds.features.Text(), "video": video, "caption": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        raise NotImplementedError("derive from ClipBuilder and say what the splits are")

    def _generate_examples(self, clips: Iterable[Clip]) -> Iterator[tuple[str, dict]]:
        for key, content, caption in clips:
            content = content if isinstance(content, bytes) else Path(content).read_bytes()
            try:
                VideoFile(content).close()
            except ValueError as error:
                raise ValueError(f"Clip {key!r} is no video or image: {error}") from None
            yield key, {"key": key, "video": content, "caption": caption}


def write_clips(path: str | Path, **splits: Iterable[Clip]) -> Path:
    """Write clips as a data set; the folder that is returned is what ``tfds:FOLDER`` reads.

    For instance ``write_clips("data", train=[("clip 1", "one.mp4", "a cat in the snow")])``; without a split "test"
    some of "train" are held out.

    Raises:
        ValueError: there is one already, or a clip is no video or image.
    """

    class LoongClips(ClipBuilder, skip_registration=True):
        """Clips with captions."""

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
            return {name: self._generate_examples(clips) for name, clips in splits.items()}

    builder = LoongClips(data_dir=str(path))
    if builder.info.splits:
        raise ValueError(f"There is a data set in {builder.data_dir} already: remove it, or give another folder.")
    builder.download_and_prepare()
    return Path(builder.data_dir)
