"""Checkpoints on disk. The only importer of orbax.

A checkpoint of step n lies in ``<workdir>/checkpoints/n``: one item per field of the state (``params``, ``opt_state``,
...) and ``meta`` (JSON). Writing is asynchronous and atomic: an unfinished one is never restored.
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

FOLDER = "checkpoints"
_ARRAY_ITEMS = ("step", "params", "opt_state", "clusters", "adversary", "ema")


class Checkpointer:
    """Saves and restores the states of one training."""

    def __init__(self, workdir: str | Path, keep: int = 2):
        """Open ``<workdir>/checkpoints``, keeping the newest ``keep`` checkpoints."""
        self._manager = _manager(Path(workdir) / FOLDER, ocp.CheckpointManagerOptions(max_to_keep=keep))

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, meta: dict) -> None:
        """Start writing ``state`` (a dataclass with ``params``) as the checkpoint of ``step``."""
        items = {name: ocp.args.StandardSave({name: value}) for name, value in _items(state).items()}
        self._manager.save(step, args=ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta)))

    def restore(self, step: int, abstract: Any) -> Any:
        """Read the checkpoint of ``step`` into the shapes and shardings of ``abstract``, on any mesh.

        Raises:
            ValueError: its arrays have other names or shapes, or it is damaged.
        """
        return dataclasses.replace(abstract, **_restore(self._manager, step, _items(abstract)))

    def close(self) -> None:
        """Wait for the last write to finish."""
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *error) -> None:
        self.close()


def _items(state: Any) -> dict[str, Any]:
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    # Orbax refuses trees without leaves, such as the fields that the language model leaves empty; nor does it take a
    # bare array, so that every item is stored as a dict of one entry.
    return {name: value for name, value in fields.items() if jax.tree.leaves(value)}


def _manager(folder: Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    # Named, so that a checkpoint's shapes can be read before its arrays are.
    handlers = {name: ocp.StandardCheckpointHandler() for name in _ARRAY_ITEMS} | {"meta": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)


@contextlib.contextmanager
def _newest(workdir: str | Path):
    folder = Path(workdir) / FOLDER
    if not folder.is_dir():
        raise ValueError(
            f"{workdir} holds no checkpoints: give the --workdir of a finished training, or train it first."
        )
    manager = _manager(folder, ocp.CheckpointManagerOptions(read_only=True))
    try:
        if manager.latest_step() is None:
            raise ValueError(f"{folder} holds no complete checkpoint: train it first.")
        yield manager
    finally:
        manager.close()


def load_meta(workdir: str | Path) -> dict:
    """The meta of the newest checkpoint of a training.

    Raises:
        ValueError: there is no complete checkpoint in ``workdir``, or it is damaged.
    """
    with _newest(workdir) as manager:
        step = manager.latest_step()
        with _damage_named(manager, step):
            return manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]


def load_parts(workdir: str | Path, abstract: dict[str, Any]) -> dict[str, Any]:
    """Parts of the newest checkpoint of a training, e.g. {"params": ...}, in the shapes and shardings of ``abstract``.

    Raises:
        ValueError: there is no complete checkpoint, its arrays have other names or shapes, or it is damaged.
    """
    with _newest(workdir) as manager:
        return _restore(manager, manager.latest_step(), abstract)


def load_weights(workdir: str | Path, abstract: Any) -> Any:
    """The weights to use of a training, their running mean if it has one, in the shapes and shardings of ``abstract``.

    Raises:
        ValueError: there are none, or they are of another architecture.
    """
    item = "ema" if load_meta(workdir)["config"].get("ema_decay") else "params"
    return load_parts(workdir, {item: abstract})[item]


def _restore(manager: ocp.CheckpointManager, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
    with _damage_named(manager, step):
        stored = manager.item_metadata(step)
    for name, wanted in abstract.items():
        _check_same(manager.directory.parent, stored[name] if name in stored.keys() else {}, {name: wanted})
    items = {name: ocp.args.StandardRestore({name: value}) for name, value in abstract.items()}
    with _damage_named(manager, step):
        restored = manager.restore(step, args=ocp.args.Composite(**items))
    return {name: restored[name][name] for name in abstract}


@contextlib.contextmanager
def _damage_named(manager: ocp.CheckpointManager, step: int):
    """One sentence for what orbax, tensorstore and json raise, of any type, where a file is cut or missing."""
    try:
        yield
    except Exception as error:
        folder = manager.directory / str(step)
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(
            f"The checkpoint {folder} cannot be read; it seems damaged ({reason}): "
            "delete that folder to go on from the checkpoint before it."
        ) from error


def _check_same(workdir: str | Path, stored: Any, wanted: Any) -> None:
    shapes = [
        {
            jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_flatten_with_path(getattr(tree, "tree", tree))[0]
        }
        for tree in (stored, wanted)
    ]
    differing = [
        f"{name} is {shapes[0].get(name, 'absent')}, wanted {shapes[1].get(name, 'absent')}"
        for name in sorted(shapes[0].keys() | shapes[1].keys())
        if shapes[0].get(name) != shapes[1].get(name)
    ]
    if differing:
        raise ValueError(
            f"The checkpoint in {workdir} is of another model: {'; '.join(differing[:3])}"
            f"{f' and {len(differing) - 3} more' if len(differing) > 3 else ''}. "
            "Use the config it was trained with, or another folder."
        )
