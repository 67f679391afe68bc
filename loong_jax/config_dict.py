"""Jobs to ConfigDicts and back: what ``configs/`` hands to ``main``, and what config.json holds."""

import dataclasses
import functools
import importlib.util
import math
import operator
import typing
from pathlib import Path
from typing import Any

import ml_collections

from loong_jax.config import JOBS, ConfigError, IntSchedule, Job, Schedule, require, require_choice

_FOLDER = Path("configs")
# The package's own: in a wheel inside the package, in a checkout beside it.
_OWN = next(filter(Path.is_dir, (parent / _FOLDER for parent in Path(__file__).parents[:2])), _FOLDER)


def parse_variant(variant: str, sizes: tuple[str, ...], others: tuple[str, ...] = ()) -> set[str]:
    """Split what follows the colon of ``--config=configs/NAME.py:a,b``: one of ``sizes`` at most, and any ``others``.

    Raises:
        ConfigError: a part is none of them, or there are several sizes.
    """
    parts = {part for part in variant.split(",") if part}
    for part in sorted(parts):
        require_choice("the config's variant", part, (*sizes, *others))
    require(len(parts & set(sizes)) <= 1, "the config's variant", variant, f"choose one of {', '.join(sizes)}")
    return parts


def load_job(folder: str | Path, name: str) -> Job:
    """The job of ``<folder>/NAME.py``, given NAME[:VARIANT].

    Raises:
        ConfigError: there is no such file or variant, or the file fails.
    """
    name, colon, variant = name.partition(":")
    return from_config_dict(load_config(f"{Path(folder) / name}.py{colon}{variant}"))


def find_config(path: str | Path) -> Path:
    """The config file at ``path``: of configs/NAME.py the package's own, where the working folder has none.

    Raises:
        ConfigError: there is no such file.
    """
    path = Path(path)
    if path.suffix == ".py":
        if path.is_file():
            return path
        if path.parent == _FOLDER and (_OWN / path.name).is_file():
            return _OWN / path.name
    folder = path if path.is_dir() or path == _FOLDER else path.parent
    raise ConfigError(f"There is no config file {path}; there are: {', '.join(config_files(folder)) or 'none'}.")


def config_files(folder: Path = _FOLDER) -> list[str]:
    """The config files of a folder; the package's own, where it has none or is ``configs``."""
    there = {str(file) for file in folder.glob("*.py")}
    if folder == _FOLDER or not there:
        there |= {str(_FOLDER / file.name) for file in _OWN.glob("*.py")}
    return sorted(there)


def load_config(file: str) -> ml_collections.ConfigDict:
    """What ``get_config`` of FILE[:VARIANT] returns.

    Raises:
        ConfigError: there is no such file or variant, or the file fails.
    """
    name, _, variant = file.partition(":")
    path = find_config(name)
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.get_config(variant)
    except ConfigError:
        raise
    except Exception as error:  # a config file is code
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"Config {path} fails with {reason}.") from error


def to_config_dict(job: Any) -> ml_collections.ConfigDict:
    """Return ``job`` as a ConfigDict that ``--config.field=value`` can override."""
    types = typing.get_type_hints(type(job))
    return ml_collections.ConfigDict({name: _to_entry(types[name], getattr(job, name)) for name in types})


def _to_entry(expected: type, value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_config_dict(value)
    kind, is_optional = _without_none(expected)
    if kind in (Schedule, IntSchedule):
        return ml_collections.FieldReference(value, field_type=object)  # a number may become a tuple
    return ml_collections.FieldReference(value, field_type=kind) if is_optional else value


def _without_none(expected: Any) -> tuple[Any, bool]:
    """The type of a field where it is not None, and whether it may be."""
    kinds = [kind for kind in typing.get_args(expected) if kind is not type(None)]
    is_optional = len(kinds) < len(typing.get_args(expected))
    return (functools.reduce(operator.or_, kinds), True) if is_optional else (expected, False)


def from_config_dict(values: Any) -> Job:
    """Return the job that ``values`` (a ConfigDict or nested dict, as read from config.json) describes.

    Raises:
        ConfigError: a field is unknown, has the wrong type, or an impossible value.
    """
    values = values.to_dict() if hasattr(values, "to_dict") else values
    require(isinstance(values, dict), "config", values, "it must be a group of settings")
    require_choice("task", values.get("task"), tuple(JOBS))
    return _build(JOBS[values["task"]], values, "")


def build(cls: type, values: dict, name: str) -> Any:
    """One group of a job's settings, called ``name`` there, from its values; those not given are the defaults.

    Raises:
        ConfigError: as ``from_config_dict``.
    """
    return _build(cls, values, f"{name}.")


def _build(cls: type, values: dict, prefix: str) -> Any:
    require(isinstance(values, dict), prefix.rstrip("."), values, "it must be a group of settings")
    types = typing.get_type_hints(cls)
    unknown = [name for name in values if name not in types]
    if unknown:
        raise ConfigError(f"{prefix}{unknown[0]} is not a field: {cls.__name__} has {', '.join(types)}.")
    kwargs = {}
    for name, value in values.items():
        if not dataclasses.is_dataclass(types[name]):
            kwargs[name] = _checked(types[name], value, f"{prefix}{name}")
        elif isinstance(value, types[name]):
            kwargs[name] = value
        else:
            kwargs[name] = _build(types[name], value, f"{prefix}{name}.")
    try:
        return cls(**kwargs)
    except ConfigError as error:
        raise ConfigError(f"In {prefix.rstrip('.') or 'config'}: {error}") from None


def _checked(expected: Any, value: Any, field: str) -> Any:
    expected, is_optional = _without_none(expected)
    if is_optional and value is None:
        return None
    for number in value if isinstance(value, (tuple, list)) else (value,):
        require(type(number) is not int or abs(number) < 2**31, field, value, "a whole number must fit into 32 bits")
    if expected in (Schedule, IntSchedule):
        kind = typing.get_args(expected)[0]
        if isinstance(value, (tuple, list)):
            return tuple(_checked(kind, item, field) for item in value)
        return _checked(kind, value, field)
    if typing.get_origin(expected) is tuple:
        ok = isinstance(value, (tuple, list)) and all(type(item) is int for item in value)
        require(ok, field, value, "it must be a tuple of integers")
        return tuple(value)
    if expected is float and type(value) is int:
        return float(value)
    ok = isinstance(value, expected) and (expected is bool or not isinstance(value, bool))
    require(ok, field, value, f"it must be of type {expected.__name__}")
    if expected is float:
        require(math.isfinite(value), field, value, "it must be finite")
    return value


def to_json_dict(job: Any) -> dict:
    """Return ``job`` as plain nested dicts, ready for json."""
    return dataclasses.asdict(job)
