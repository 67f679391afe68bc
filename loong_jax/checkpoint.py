"""Checkpoints on disk. The only importer of orbax.

A checkpoint of step n lies in ``<workdir>/checkpoints/n``: one item per field of the state (``params``, ``opt_state``,
...), ``meta`` (JSON), and ``checksums.json`` over all files. It is written in the background, beside its place, and
moved there when it is complete, so that a folder named by a number is whole unless something has damaged it since.
"""

import contextlib
import dataclasses
import os
import re
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from loong_jax import checksums, distributed

FOLDER = "checkpoints"
_PARTIAL = ".partial"  # how a folder is called while it is written or deleted
_ITEMS = ("step", "params", "opt_state", "clusters", "adversary", "ema", "skips")
_DISK = re.compile("No space left on device|Disk quota exceeded|Read-only file system|Permission denied|File too large")
_NONE, _NO_WHOLE = -1, -2  # in place of the step to restore


class Checkpointer:
    """Saves and restores the states of one training."""

    def __init__(self, workdir: str | Path, keep: int = 2, keep_every: int = 0):
        """Open ``<workdir>/checkpoints``, keeping the newest ``keep`` checkpoints.

        Args:
            workdir: of the training.
            keep: how many.
            keep_every: those of every so many steps are kept as well; 0: none.
        """
        self._folder = Path(workdir).absolute() / FOLDER
        self._keep, self._keep_every = keep, keep_every
        # Orbax's processes would wait 20 minutes for one whose disk is full.
        options = ocp.options.AsyncOptions(barrier_sync_fn=lambda **place: self._work.meet(**place))
        self._writer = ocp.AsyncCheckpointer(_handler(), async_options=options)
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future | None = None
        self._unsaved: OSError | None = None
        if distributed.is_first():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_partial()

    def is_empty(self) -> bool:
        """Whether there is no checkpoint."""
        return not _steps(self._folder)

    def save(self, step: int, state: Any, meta: dict) -> None:
        """Start writing ``state`` (a dataclass with ``params``) as the checkpoint of ``step``.

        Where that fails, now or later, a warning says why, and the checkpoints before it stay; see ``wait``.
        """
        self._finish()
        if self._unsaved is not None and distributed.is_first():
            self._remove_partial()  # what orbax went on writing after it had failed
        self._unsaved = None
        if lacking := distributed.of_first(self._missing(step, state)):
            self._warn(step, f"the disk lacks {lacking} MiB for it" if lacking > 0 else os.strerror(-lacking))
            return
        items = {name: ocp.args.StandardSave({name: value}) for name, value in _items(state).items()}
        self._work, failure = distributed.SharedWork(), None
        try:
            self._writer.save(self._partial(step), ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta)))
        except Exception as error:  # of many types, where a disk is full or a folder cannot be written
            failure = error
        self._pending = self._thread.submit(self._complete, step, failure)

    def wait(self) -> None:
        """Wait for the last write.

        Raises:
            OSError: it failed.
        """
        self._finish()
        if self._unsaved is not None:
            raise self._unsaved

    def restore(self, abstract: Any, check: Callable[[dict], None] = lambda meta: None) -> tuple[int, Any, dict] | None:
        """Step, state and meta of the newest whole checkpoint; None where there is none at all.

        Newer ones that are damaged are named in a warning, and kept as ``n.damaged``.

        Args:
            abstract: the state's shapes and shardings, on any mesh.
            check: raises ValueError where a meta is not one to go on from.

        Raises:
            ValueError: no checkpoint is whole, or the arrays have other names or shapes.
        """
        self._finish()
        damaged: dict[int, str] = {}
        step = distributed.of_first(self._choose(damaged) if distributed.is_first() else 0)
        if step == _NO_WHOLE:
            raise ValueError(
                f"No checkpoint in {self._folder} is whole{_listed(damaged)}: bring back a copy, or train anew in "
                "another workdir."
            )
        if step == _NONE:
            return None
        meta = _read_meta(self._folder / str(step))
        check(meta)
        state = dataclasses.replace(abstract, **_restore(self._folder / str(step), _items(abstract)))
        for number in damaged:
            self._set_aside(number)
        if damaged:
            warnings.warn(
                f"Damaged checkpoints in {self._folder}{_listed(damaged)}: the training goes on from step {step}, and "
                "they are kept, with .damaged after their names.",
                stacklevel=2,
            )
        return step, state, meta

    def close(self) -> None:
        """Wait for the last write to end, well or not."""
        self._finish()
        self._thread.shutdown()
        self._writer.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def _complete(self, step: int, failure: Exception | None) -> None:
        """Once orbax has written all: take checksums, move the checkpoint to its place, delete older ones."""
        try:
            if failure is not None:
                raise failure
            self._writer.wait_until_finished()  # which in the first process waits for all
            if distributed.is_first():
                checksums.write(self._partial(step))
                self._partial(step).rename(self._folder / str(step))
                _sync(self._folder)
                self._delete_old()
            reason = ""
        except Exception as error:  # as in ``save``
            reason = _reason(error)
        if reason := self._work.end(reason):
            self._warn(step, reason)

    def _finish(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _missing(self, step: int, state: Any) -> int:
        """MiB that the disk lacks for ``state``, or less than 0: the number of the error where nothing can be made."""
        if not distributed.is_first():
            return 0
        try:
            self._partial(step).mkdir()  # the others would wait five minutes for orbax's
            self._partial(step).rmdir()
        except OSError as error:
            return -error.errno
        missing = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) - shutil.disk_usage(self._folder).free
        return max(0, -(-missing // 2**20))

    def _warn(self, step: int, reason: str) -> None:
        if distributed.is_first():
            self._remove_partial()
        message = f"The checkpoint of step {step} could not be written to {self._folder} ({reason})"
        self._unsaved = OSError(f"{message}: make room or mend the folder, and start again to go on from the last one.")
        warnings.warn(f"{message}: those before it are whole; make room or mend the folder.", stacklevel=2)

    def _choose(self, damaged: dict[int, str]) -> int:
        """The newest step that is whole; newer ones go into ``damaged``, each with what is wrong."""
        for step in sorted(_steps(self._folder), reverse=True):
            damage = checksums.find_damage(self._folder / str(step))
            if not damage:
                return step
            damaged[step] = damage
        return _NO_WHOLE if damaged else _NONE

    def _delete_old(self) -> None:
        steps = sorted(_steps(self._folder))
        kept = {step for step in steps if self._keep_every and step % self._keep_every == 0}
        for step in set(steps[: -self._keep]) - kept:
            (self._folder / str(step)).rename(self._partial(step))  # deleting takes time, in which a kill can come
            shutil.rmtree(self._partial(step))

    def _set_aside(self, step: int) -> None:
        if distributed.is_first():
            name, count = f"{step}.damaged", 1
            while (self._folder / name).exists():
                name, count = f"{step}.damaged.{count}", count + 1
            (self._folder / str(step)).rename(self._folder / name)

    def _partial(self, step: int) -> Path:
        return self._folder / f"{step}{_PARTIAL}"

    def _remove_partial(self) -> None:
        for path in self._folder.glob(f"*{_PARTIAL}*"):
            shutil.rmtree(path, ignore_errors=True)


def has_any(workdir: str | Path) -> bool:
    """Whether a training in ``workdir`` has left a complete checkpoint."""
    return bool(_steps(Path(workdir) / FOLDER))


def load_meta(workdir: str | Path) -> dict:
    """The meta of the newest checkpoint of a training.

    Raises:
        ValueError: there is no complete checkpoint in ``workdir``, or it is damaged.
    """
    folder = _newest(workdir)
    _check_whole(folder, "meta")
    return _read_meta(folder)


def load_parts(workdir: str | Path, abstract: dict[str, Any]) -> dict[str, Any]:
    """Parts of the newest checkpoint of a training, e.g. {"params": ...}, in the shapes and shardings of ``abstract``.

    Raises:
        ValueError: there is no complete checkpoint, its arrays have other names or shapes, or it is damaged.
    """
    folder = _newest(workdir)
    _check_whole(folder, *abstract)
    return _restore(folder, abstract)


def load_weights(workdir: str | Path, abstract: Any, ema_decay: float) -> Any:
    """The weights to use of a training, their running mean if it has one, in the shapes and shardings of ``abstract``.

    Args:
        workdir: of the training.
        abstract: as in ``load_parts``.
        ema_decay: of the training's job; 0 where it has no mean.

    Raises:
        ValueError: there are none, or they are of another architecture.
    """
    item = "ema" if ema_decay else "params"
    return load_parts(workdir, {item: abstract})[item]


def _items(state: Any) -> dict[str, Any]:
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    # Orbax refuses trees without leaves, such as the fields that the language model leaves empty; nor does it take a
    # bare array, so that every item is stored as a dict of one entry.
    return {name: value for name, value in fields.items() if jax.tree.leaves(value)}


def _handler() -> ocp.CompositeCheckpointHandler:
    # Named, so that a checkpoint's shapes can be read before its arrays are.
    handlers = {name: ocp.StandardCheckpointHandler() for name in _ITEMS} | {"meta": ocp.JsonCheckpointHandler()}
    return ocp.CompositeCheckpointHandler(**handlers)


def _steps(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []


def _newest(workdir: str | Path) -> Path:
    folder = Path(workdir).absolute() / FOLDER
    if not folder.is_dir():
        raise ValueError(
            f"{workdir} holds no checkpoints: give the --workdir of a finished training, or train it first."
        )
    if not _steps(folder):
        raise ValueError(f"{folder} holds no complete checkpoint: train it first.")
    return folder / str(max(_steps(folder)))


def _check_whole(folder: Path, *parts: str) -> None:
    if damage := checksums.find_damage(folder, *parts):
        raise ValueError(_damaged(folder, damage))


def _read_meta(folder: Path) -> dict:
    with _damage_named(folder), ocp.Checkpointer(_handler()) as reader:
        return reader.restore(folder, ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]


def _reason(error: Exception) -> str:
    known = _DISK.search(str(error))  # at the end of what the libraries say
    return known.group() if known else (str(error).splitlines() or [type(error).__name__])[0][:200]


def _restore(folder: Path, abstract: dict[str, Any]) -> dict[str, Any]:
    with ocp.Checkpointer(_handler()) as reader:
        with _damage_named(folder):
            stored = reader.metadata(folder).item_metadata
        for name, wanted in abstract.items():
            _check_same(folder.parents[1], stored[name] if name in stored.keys() else {}, {name: wanted})
        items = {name: ocp.args.StandardRestore({name: value}) for name, value in abstract.items()}
        with _damage_named(folder):
            restored = reader.restore(folder, ocp.args.Composite(**items))
    return {name: restored[name][name] for name in abstract}


@contextlib.contextmanager
def _damage_named(folder: Path):
    """One sentence for what orbax, tensorstore and json raise, of any type, where a file cannot be read."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(_damaged(folder, reason)) from error


def _damaged(folder: Path, reason: str) -> str:
    return f"The checkpoint {folder} is damaged ({reason}): delete that folder to use the checkpoint before it."


def _listed(damaged: dict[int, str]) -> str:
    return f" ({'; '.join(f'{step}: {damage}' for step, damage in damaged.items())})" if damaged else ""


def _sync(folder: Path) -> None:
    """Make what was renamed in ``folder`` outlast a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


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
