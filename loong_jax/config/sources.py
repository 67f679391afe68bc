"""How a source of data is named: ``KIND`` or ``KIND:WHERE``, several with weights as ``3*KIND:WHERE|1*KIND:WHERE``."""

import dataclasses
import math

from loong_jax.config.checks import require, require_choice

# What stands after the colon.
_WHERE = {
    "moving_digits": "",
    "folder": "DIR",
    "web_shards": "DIR",
    "cut_list": "FILE",
    "tfds": "NAME",
    "tokens": "DIR",
}


@dataclasses.dataclass(frozen=True)
class SourceName:
    """One source, and its weight among several."""

    kind: str
    where: str = ""
    weight: float = 1.0

    def __str__(self) -> str:
        return f"{self.kind}:{self.where}" if self.where else self.kind


def parse_sources(field: str, text: str) -> tuple[SourceName, ...]:
    """The sources that the setting ``field`` names.

    Raises:
        ConfigError: a kind is unknown, lacks its place, or has a weight that is no positive number.
    """
    parts = [part.strip() for part in text.split("|")]
    require(all(parts), field, text, "a source is missing before or after a |" if len(parts) > 1 else "name a source")
    sources = tuple(_parse(field, part) for part in parts)
    kinds = {source.kind for source in sources}
    require("tokens" not in kinds or len(kinds) == 1, field, text, "tokens can be mixed with tokens only")
    return sources


def is_tokens(text: str) -> bool:
    """Whether a name of sources is of ids that are there already."""
    return parse_sources("data.source", text)[0].kind == "tokens"


def require_pixels(field: str, text: str) -> None:
    """Raise ConfigError where sources of videos and images are needed and ``text`` names ids."""
    require(not is_tokens(text), field, text, "ids are there for the language model; name a source of videos or images")


def _parse(field: str, text: str) -> SourceName:
    name, _, where = text.partition(":")
    weight, star, kind = name.rpartition("*")
    require(kind in _WHERE or "/" not in text, field, text, f"say what it is, as in folder:{text}")
    require_choice(field, kind, tuple(_WHERE))
    wanted = str(SourceName(kind, _WHERE[kind]))
    is_placed = bool(where) == bool(_WHERE[kind])
    require(is_placed, field, text, f"write {wanted}, as in --config.{field}={wanted}")
    try:
        value = float(weight) if star else 1.0
    except ValueError:
        value = math.nan
    require(0 < value < math.inf, field, text, "the weight before the * must be a number above 0")
    return SourceName(kind, where, value)
