"""Checks that every setting goes through, and the error they raise."""

from typing import Any


class ConfigError(ValueError):
    """A setting is unknown or impossible; the message names the field, the value and what is allowed."""


def require(condition: bool, field: str, value: Any, allowed: str) -> None:
    """Raise ConfigError, which says what is ``allowed``, unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"{field}={value!r} is not possible: {allowed}.")


def require_choice(field: str, value: Any, choices: tuple) -> None:
    """Raise ConfigError unless ``value`` is one of ``choices``."""
    require(value in choices, field, value, "choose one of " + ", ".join(map(repr, choices)))


def require_positive(owner: Any, *fields: str) -> None:
    """Raise ConfigError unless these fields of ``owner`` are greater than 0."""
    for field in fields:
        value = getattr(owner, field)
        require(value > 0, field, value, "it must be greater than 0")


def require_not_negative(owner: Any, *fields: str) -> None:
    """Raise ConfigError where one of these fields of ``owner`` is below 0."""
    for field in fields:
        value = getattr(owner, field)
        require(value >= 0, field, value, "it cannot be negative")


def require_seed(owner: Any) -> None:
    """Raise ConfigError unless ``owner.seed`` lies in [0, 2**31), as everything takes it that draws."""
    require(0 <= owner.seed < 2**31, "seed", owner.seed, f"use a whole number from 0 to {2**31 - 1}")


def require_share(owner: Any, *fields: str) -> None:
    """Raise ConfigError unless these fields of ``owner`` lie in [0, 1]."""
    for field in fields:
        value = getattr(owner, field)
        require(0 <= value <= 1, field, value, "it must lie in [0, 1]")


DTYPES = ("auto", "float32", "bfloat16")
