"""A tree of arrays in one safetensors file, each under the names that lead to it."""

from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def rounded(tree: Any, dtype: str) -> Any:
    """A tree of floating arrays as NumPy arrays of ``dtype``, one of ``DTYPES``."""
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(DTYPES[dtype]), tree)


def save_tree(path: str | Path, tree: Any) -> None:
    """Write a tree of arrays, each in its dtype."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    save_tensors(path, {_name(place): np.asarray(leaf) for place, leaf in leaves})


def save_tensors(path: str | Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write arrays by their names; the file is there when it is whole, for whoever may read its folder."""
    temporary = Path(path).with_suffix(".partial")
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, temporary, metadata=metadata)
    temporary.chmod(temporary.parent.stat().st_mode & 0o666)  # safetensors keeps its files to their owner
    temporary.replace(path)


def load_tree(path: str | Path, abstract: Any) -> Any:
    """The tree of a file, in the structure, shapes, dtypes and (where they have any) shardings of ``abstract``.

    Raises:
        ValueError: the file is missing, is no safetensors file, or holds other arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no {path}: the model folder is not whole, copy or export it again.")
    leaves, structure = jax.tree_util.tree_flatten_with_path(abstract)
    wanted = {_name(place): leaf for place, leaf in leaves}
    try:
        with safe_open(path, "numpy") as file:
            names = file.keys()
            _check(path, {name: tuple(file.get_slice(name).get_shape()) for name in names}, wanted)
            arrays = [_placed(file.get_tensor(name), leaf) for name, leaf in wanted.items()]
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): copy or export it again.") from None
    return jax.tree.unflatten(structure, arrays)


def _name(place: tuple) -> str:
    return jax.tree_util.keystr(place, simple=True, separator=".")


def _placed(value: np.ndarray, wanted: Any) -> Any:
    value = value.astype(wanted.dtype)
    sharding = getattr(wanted, "sharding", None)
    return value if sharding is None else jax.device_put(value, sharding)


def _check(path: Path, found: dict[str, tuple[int, ...]], wanted: dict[str, Any]) -> None:
    for problem, names in (("lacks", wanted.keys() - found.keys()), ("holds also", found.keys() - wanted.keys())):
        if names:
            raise ValueError(
                f"{path} {problem} {sorted(names)[0]!r} ({len(names)} such arrays): it is of another model than its "
                "config.json says."
            )
    for name, shape in found.items():
        if shape != tuple(wanted[name].shape):
            raise ValueError(
                f"In {path} {name} is {shape}, and the model that config.json describes needs "
                f"{tuple(wanted[name].shape)}."
            )
