"""Which config file a command line means, and what is wrong with it, in one sentence.

absl and ml_collections tell the latter in several, or in Python's.
"""

import ast
import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags

from loong_jax.config import ConfigError, require
from loong_jax.config_dict import config_files, find_config, load_config

_PARSERS = {
    bool: (flags.BooleanParser(), "True or False"),
    int: (flags.IntegerParser(), "a whole number"),
    float: (flags.FloatParser(), "a number"),
}
_SETTING = re.compile(r"--?(?P<no>no)?config\.(?P<field>[^=]*)(=(?P<text>.*))?", re.DOTALL)
_FILE = re.compile(r"--?config(=(?P<text>.*))?", re.DOTALL)


def locate_config(arguments: list[str]) -> list[str]:
    """``arguments`` with the path of the config file; where that is the package's own, stderr says so.

    Raises:
        ConfigError: there is no such file.
    """
    located = list(arguments)
    for place, file in _config_files(arguments):
        name, colon, variant = file.partition(":")
        path = str(find_config(name))
        if path != str(Path(name)):
            print(f"There is no {name} here: taking that of the package, {path}.", file=sys.stderr)
            place += "=" not in arguments[place]  # "--config FILE" are two arguments
            located[place] = arguments[place].removesuffix(file) + path + colon + variant
    return located


def explain(arguments: list[str], error: Exception) -> str:
    """The mistake in ``arguments``, over which the flags' parser raised ``error``."""
    try:
        check_arguments(arguments)
    except ConfigError as mistake:
        return str(mistake)
    return one_line(error)


def one_line(error: Exception) -> str:
    """The message of an error without line breaks, and what raised it where it has none."""
    if isinstance(error, OSError) and error.strerror is not None:
        return f"{error.filename or 'a file that was read or written'}: {error.strerror}."
    return " ".join(str(error).split()) or type(error).__name__


def wants_help(arguments: list[str]) -> bool:
    """Whether the user asks what there is to say."""
    return not {"--help", "-help", "-h", "--helpshort", "--helpfull"}.isdisjoint(arguments)


def help_text(arguments: list[str]) -> str:
    """What there is to run; or of the config file in ``arguments`` what it does, and all settings as it has them.

    Raises:
        ConfigError: there is no such file or variant, or the file fails.
    """
    given = _config_files(arguments)
    usage = "python -m loong_jax.main --config=configs/NAME.py[:VARIANT] [--workdir=DIR] [--config.FIELD=VALUE ...]"
    if not given:
        summaries = {file: _docstring(file).partition("\n")[0] for file in config_files()}
        rows = [f"    {file:<26} {summary}".rstrip() for file, summary in summaries.items()]
        hint = "With --config=FILE, --help says what it does and what its settings are."
        return "\n".join([usage, "", *rows, "", hint])
    _, file = given[-1]
    settings = [f"    --config.{name}={value!r}" for name, value in _settings(load_config(file))]
    return "\n".join([_docstring(file.partition(":")[0]).strip(), "", "Settings:", "", *settings])


def _docstring(file: str) -> str:
    """Of a config file; empty where it has none, or is no Python, which loading it says better."""
    try:
        return ast.get_docstring(ast.parse(find_config(file).read_bytes())) or ""
    except (SyntaxError, ValueError):
        return ""


def _settings(values: ml_collections.ConfigDict, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _settings(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def check_arguments(arguments: list[str]) -> None:
    """Raise ConfigError where the config file cannot be had, or a setting is not in it or of another type."""
    given = _config_files(arguments)
    if not given:
        raise ConfigError(f"--config=configs/NAME.py is needed; there are: {', '.join(config_files())}.")
    [(first, _), *_], (_, file) = given, given[-1]
    values = load_config(file)
    for place, argument in enumerate(arguments):
        if setting := _SETTING.fullmatch(argument):
            if place < first:
                raise ConfigError(f"{argument} comes before --config={file}: write it after that.")
            following = arguments[place + 1] if place + 1 < len(arguments) else None
            _check_setting(values, setting["field"], following if setting["text"] is None else setting["text"])


def _config_files(arguments: list[str]) -> list[tuple[int, str]]:
    """Of each --config=FILE, or --config FILE, its place and the file."""
    found = [(place, _FILE.fullmatch(argument)) for place, argument in enumerate(arguments)]
    return [(place, match["text"] or "".join(arguments[place + 1 : place + 2])) for place, match in found if match]


def _check_setting(values: Any, field: str, text: str | None) -> None:
    path, kind = "", dict
    for name in field.split("."):
        if not isinstance(values, ml_collections.ConfigDict):
            raise ConfigError(f"--config.{field} is not a setting: {path} is a single value, {values!r}.")
        if name not in values:
            near = difflib.get_close_matches(name, list(values), 1)
            guess = f" (did you mean {near[0]}?)" if near else ""
            group = path or "the config"
            raise ConfigError(f"--config.{field} is not a setting{guess}: {group} has {', '.join(values)}.")
        path, kind, values = f"{path}.{name}".lstrip("."), values.get_type(name), values[name]
    if isinstance(values, ml_collections.ConfigDict):
        raise ConfigError(f"--config.{field} is a group of settings: set one of {', '.join(values)}.")
    if kind is tuple:
        is_possible = text is not None and re.fullmatch(r"[(\[]?(\s*-?\d+\s*,)*(\s*-?\d+)?\s*[)\]]?", text)
        require(bool(is_possible), f"--config.{field}", text, "write whole numbers, as in (1,2)")
    elif kind in _PARSERS and not (kind is bool and text is None):
        parser, allowed = _PARSERS[kind]
        try:
            parser.parse(text)
        except (TypeError, ValueError):
            raise ConfigError(f"--config.{field}={text!r} is not possible: it must be {allowed}.") from None
