"""Weights that other packages ship: found without importing the package, read without running what is in the file."""

import importlib.util
import pickle
from pathlib import Path

import numpy as np


def read_package_weights(package: str, file: str) -> dict | None:
    """The nested dictionary of arrays that ``package`` has pickled; None where it is not installed.

    Args:
        package: the name it is imported by.
        file: path inside of it.

    Raises:
        ValueError: the file is missing, cut short, or holds something else than arrays.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / file
    try:
        with path.open("rb") as stream:
            return _ArrayUnpickler(stream).load()
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not the file of weights that it should be: {error}.") from error


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickled NumPy arrays and refuses everything else, which could run code."""

    _ALLOWED = {"_reconstruct": np.empty(0).__reduce__()[0], "ndarray": np.ndarray, "dtype": np.dtype}

    def find_class(self, module, name):
        if module.split(".")[0] != "numpy" or name not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array")
        return self._ALLOWED[name]
