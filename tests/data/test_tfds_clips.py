"""Data sets of TensorFlow Datasets, ours and others, without TensorFlow."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from media import encode_image, encode_video

from loong_jax.config import DataConfig
from loong_jax.data.clip_builder import ClipBuilder, write_clips
from loong_jax.data.sources import make_source
from loong_jax.data.tfds_clips import TfdsClips


def clips(count, first=0):
    return [(f"clip {i}", encode_video(12, 20 * i), f"caption {i}, é") for i in range(first, first + count)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    (folder / "one.mp4").write_bytes(encode_video(12, 100))
    return write_clips(folder, train=[*clips(4), ("file", folder / "one.mp4", "from a file")], test=clips(2, 10))


def source(name, split="train", **options):
    options = dict(frame_size=16, num_frames=5, fps=8) | options
    return make_source(DataConfig(source=f"tfds:{name}", **options), split)


def test_our_format_comes_back(written):
    train, test = TfdsClips(str(written), "train"), TfdsClips(str(written), "test")
    found = {medium.key: medium for medium in (train[place] for place in range(len(train)))}
    assert set(found) == {"clip 0", "clip 1", "clip 2", "clip 3", "file"}
    assert found["clip 2"].content == encode_video(12, 40) and found["clip 2"].caption == "caption 2, é"
    assert found["file"].content == encode_video(12, 100) and found["file"].caption == "from a file"
    assert {test[place].key for place in range(len(test))} == {"clip 10", "clip 11"}
    assert source(written)[3]["video"].shape == (5, 16, 16, 3)
    assert {source(written, "test")[i]["key"].split("#")[0] for i in range(6)} == {"clip 10", "clip 11"}


def test_a_builder_of_ones_own_and_held_out_clips_without_a_test_split(tmp_path):
    class Mine(ClipBuilder, skip_registration=True):
        """Three clips."""

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(clips(9))}

    builder = Mine(data_dir=str(tmp_path))
    builder.download_and_prepare()
    train, test = ({source(builder.data_dir, s)[i]["key"].split("#")[0] for i in range(18)} for s in ("train", "test"))
    assert len(train) == 8 and len(test) == 1 and not train & test


class Arrays(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Videos as arrays of gray pixels with a class, as many data sets have them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image_sequence": tfds.features.Tensor(shape=(None, 24, 24, 1), dtype=np.uint8, encoding="zlib"),
            "label": tfds.features.ClassLabel(names=["rising", "falling"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index in range(4):
            frames = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None, None, None] * 10, (8, 24, 24, 1))
            yield index, {"image_sequence": frames[:: -1 if index % 2 else 1].copy(), "label": index % 2}


def test_arrays_and_classes(tmp_path):
    builder = Arrays(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    for index in range(6):
        example = source(builder.data_dir)[index]
        start = int(example["key"].split("#")[1])
        rising = 10 * (start + np.arange(5))
        expected = rising if example["caption"] == "rising" else 70 - rising
        np.testing.assert_array_equal(example["video"].mean(axis=(1, 2, 3)), expected)
    assert {source(builder.data_dir)[i]["caption"] for i in range(6)} == {"rising", "falling"}


class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images with captions."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "text": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(dl_manager)}

    def _generate_examples(self, dl_manager):
        for index in range(3):
            file = f"{self.data_dir}.{index}.png"
            with open(file, "wb") as out:
                out.write(encode_image(50 * index))
            yield index, {"image": file, "text": f"picture {index}"}


def test_images(tmp_path):
    pytest.importorskip("PIL")
    builder = Pictures(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    examples = [source(builder.data_dir, num_frames=1)[i] for i in range(2)]
    for example in examples:
        value = 50 * int(example["caption"].removeprefix("picture "))
        np.testing.assert_array_equal(example["video"], np.full((1, 16, 16, 3), value))


def test_what_cannot_be_read_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=r"knows no data set 'nonsense'.*loong_jax\[tfds\]"):
        TfdsClips("nonsense", "train")
    with pytest.raises(ValueError, match="mnist is not prepared: run `tfds build mnist --file_format=array_record`"):
        TfdsClips("mnist", "train")
    try:
        import tensorflow  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(ValueError, match=r"needs TensorFlow to read webvid: pip install .loong_jax\[tfds\]"):
            TfdsClips("webvid", "train")
