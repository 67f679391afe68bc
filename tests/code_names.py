"""The names that occur in the code: what prose about it may name."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "loong_jax").rglob("*.py"))
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def documented(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """The parts of a file that have a docstring, with it."""
    for node in ast.walk(parse(path)):
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
            yield node, text


@functools.cache
def names_of_the_code() -> frozenset[str]:
    """Words of names and texts in the package, configs, tests and launch scripts, but for docstrings and comments."""
    words = set()
    for path in [*PACKAGE, *(path for folder in ("configs", "tests") for path in (ROOT / folder).rglob("*.py"))]:
        docstrings = {id(node.body[0].value) for node, _ in documented(path)}
        words |= {path.stem, *path.parent.parts}
        for node in ast.walk(parse(path)):
            texts = [getattr(node, field, None) for field in ("id", "attr", "arg", "name", "module")]
            if isinstance(node, ast.Constant) and id(node) not in docstrings:
                texts.append(node.value)
            words |= {word for text in texts if isinstance(text, str) for word in re.findall(r"\w+", text)}
    for path in [*(ROOT / "launch").glob("*.s*"), ROOT / "setup.py"]:
        words |= set(re.findall(r"\w+", path.read_text(encoding="utf-8")))
    return frozenset(words)
