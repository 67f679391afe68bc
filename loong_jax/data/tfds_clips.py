"""Data sets of TensorFlow Datasets, read without TensorFlow where their features allow it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from loong_jax.data.bad_media import BadMedium
from loong_jax.data.clips import Medium

_CONTENT = ("video", "image_sequence", "frames", "image")
_CAPTIONS = ("caption", "captions", "text", "title")
_NEEDS_TENSORFLOW = (
    'TFDS needs TensorFlow to read {name}: pip install "loong_jax[tfds]". (Without it: data sets whose videos are '
    "stored as files or arrays, such as those that loong_jax.data.clip_builder makes.)"
)


class TfdsClips:
    """The examples of one split of a prepared data set, in their order on disk."""

    def __init__(self, name: str, split: str):
        """Open it.

        Args:
            name: of a registered data set ("ucf101/ucf101_1:2.0.0"), looked for where TFDS_DATA_DIR says, or the folder
                of a prepared one, which holds its features.json.
            split: "train", or "test", for which a data set without one gives its "validation".

        Raises:
            ValueError: it is unknown, not prepared as ArrayRecord, or needs TensorFlow.
        """
        self.name = name
        is_folder = Path(name).is_dir()
        if is_folder and not (Path(name) / "features.json").is_file():
            raise ValueError(f"{name} holds no features.json: give the folder that does, such as NAME/1.0.0 in it.")
        if is_folder:
            _check_classes(Path(name))
        try:
            builder = tfds.builder_from_directory(name) if is_folder else tfds.builder(name, file_format="array_record")
            splits, features = list(builder.info.splits), dict(builder.info.features)
            self.has_own_test = bool({"test", "validation"} & set(splits))
            wanted = ["train"] if split == "train" or not self.has_own_test else ["test", "validation"]
            chosen = next((known for known in wanted if known in splits), None)
            self._source = builder.as_data_source(chosen) if chosen else None
            num_examples = len(self._source) if chosen else 0
        except ModuleNotFoundError:
            raise ValueError(_NEEDS_TENSORFLOW.format(name=name)) from None
        except tfds.core.DatasetNotFoundError:
            raise ValueError(
                f"TFDS knows no data set {name!r}, and it is no folder with a features.json. Some are known only with "
                'TensorFlow: pip install "loong_jax[tfds]".'
            ) from None
        except NotImplementedError:
            raise ValueError(
                f"Data set {name} is prepared, but not for random access: run "
                f"`tfds build {name} --file_format=array_record`."
            ) from None
        except Exception as error:  # of many libraries, which its files pass through
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ValueError(f"Data set {name} cannot be opened ({reason}): prepare it anew.") from None
        if not splits:
            raise ValueError(
                f"Data set {name} is not prepared: run `tfds build {name} --file_format=array_record`, or set "
                "TFDS_DATA_DIR to where it is."
            )
        if chosen is None:
            raise ValueError(f"Data set {name} has no split train: it has {', '.join(splits)}.")
        if not num_examples:
            raise ValueError(f"Data set {name} has no example in its split {chosen}: prepare it anew.")
        self._content = next((field for field in _CONTENT if field in features), None)
        if self._content is None:
            raise ValueError(f"Data set {name} has none of the features {', '.join(_CONTENT)}: {', '.join(features)}.")
        self._caption = next((field for field in _CAPTIONS if field in features), None)
        label = features["label"] if "label" in features else None
        self._label_name = getattr(label, "int2str", None)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, place: int) -> Medium:
        """Read one example.

        Raises:
            BadMedium: its record is damaged.
            ValueError: its features need TensorFlow.
        """
        try:
            example = self._source[place]
            key = example.get("key", b"")
            key = key.decode("utf-8", errors="replace") if isinstance(key, bytes) else str(key)
            return Medium(key or f"{self.name}/{place}", _content(example[self._content]), self._caption_of(example))
        except ModuleNotFoundError:
            raise ValueError(_NEEDS_TENSORFLOW.format(name=self.name)) from None
        except Exception as error:  # of many libraries, which a record passes through
            raise BadMedium("damaged record", f"{self.name}: {type(error).__name__}: {error}") from None

    def _caption_of(self, example: dict) -> str:
        if self._caption is not None:
            value = example[self._caption]
            value = value if isinstance(value, (bytes, str)) else next(iter(value), "")  # several: the first
            return (value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)).strip()
        return self._label_name(int(example["label"])) if self._label_name else ""


def _check_classes(folder: Path) -> None:
    """Raise ValueError where features.json names a class that is not of TFDS, which would import what it names."""
    try:
        features = [json.loads((folder / "features.json").read_text(encoding="utf-8"))]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder}/features.json is damaged: {error}.") from None
    while features:
        found = features.pop()
        if isinstance(found, dict):
            features += found.values()
            for name in (found.get(key) for key in ("pythonClassName", "python_class_name", "type")):
                if isinstance(name, str) and "." in name and not name.startswith("tensorflow_datasets."):
                    raise ValueError(f"{folder}/features.json names the class {name}, which is none of TFDS.")
        elif isinstance(found, list):
            features += found


def _content(value: Any) -> bytes | np.ndarray:
    if isinstance(value, (bytes, np.bytes_)):
        return bytes(value)
    frames = np.asarray(value)
    return frames if frames.ndim == 4 else frames[None]
