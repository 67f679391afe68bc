"""Weights in other packages: arrays are read, code is refused, nothing is imported."""

import pickle
import sys

import numpy as np
import pytest

from loong_jax.package_weights import read_package_weights


class Evil:
    def __reduce__(self):
        return print, ("ran",)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder for files of a package that fails when it is imported."""
    folder = tmp_path / "some_weights"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_arrays_are_read_without_importing_the_package(package):
    stored = {"layer": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    (package / "net.ckpt").write_bytes(pickle.dumps(stored))
    read = read_package_weights("some_weights", "net.ckpt")
    np.testing.assert_array_equal(read["layer"]["kernel"], stored["layer"]["kernel"])
    assert "some_weights" not in sys.modules


def test_a_package_that_is_not_installed():
    assert read_package_weights("some_other_weights", "net.ckpt") is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps({"array": np.ones(2), "evil": Evil()}), "builtins.print is not an array"),
        (pickle.dumps(np.ones(100))[:50], "net.ckpt is not the file of weights"),
        (None, "No such file"),
    ],
)
def test_what_is_no_file_of_arrays_is_refused(package, content, said, capsys):
    if content is not None:
        (package / "net.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_package_weights("some_weights", "net.ckpt")
    assert capsys.readouterr().out == ""
