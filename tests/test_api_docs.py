"""Docstrings are there, name what there is, and become the pages of the API without a warning."""

import ast
import builtins
import html
import re
import subprocess
import sys
from pathlib import Path

import pytest
from code_names import PACKAGE, ROOT, documented, names_of_the_code, parse

import loong_jax

EVERY_FILE = pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT / "loong_jax")))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def undocumented(body: list[ast.stmt]) -> list[str]:
    """Public classes, functions and methods without a docstring."""
    public = [node for node in body if isinstance(node, (ast.ClassDef, *FUNCTIONS)) and not node.name.startswith("_")]
    missing = [node.name for node in public if not ast.get_docstring(node)]
    return missing + [name for node in public if isinstance(node, ast.ClassDef) for name in undocumented(node.body)]


@EVERY_FILE
def test_what_is_public_has_a_docstring(path):
    assert not path.stat().st_size or ast.get_docstring(parse(path))
    assert not undocumented(parse(path).body)


@EVERY_FILE
def test_names_in_docstrings_occur_in_the_code(path):
    spans = [span for _, text in documented(path) for span in re.findall(r"`+([^`]+)`+", text)]
    # Of dotted ones those of ours; what is in capitals stands for something.
    names = [span.removesuffix("()") for span in spans if re.fullmatch(r"[A-Za-z_]\w*(\(\))?", span)]
    names += [part for span in spans if re.fullmatch(r"(config|loong_jax)(\.\w+)+", span) for part in span.split(".")]
    known = names_of_the_code() | set(dir(builtins))
    assert not [name for name in names if name not in known and not name.isupper()]


@EVERY_FILE
def test_arguments_in_docstrings_are_those_of_the_function(path):
    for node, text in documented(path):
        section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
        if isinstance(node, FUNCTIONS) and section:
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            known = {argument.arg for argument in every if argument}
            described = re.findall(r"^    \*{0,2}(\w+):", section[1], re.MULTILINE)
            assert described and set(described) <= known, f"{node.name}: {set(described) - known}"


def test_a_wrong_docstring_would_be_found():
    [function] = ast.parse("class Public:\n    def _own(self): pass\n    def shown(self): pass").body
    assert undocumented([function]) == ["Public", "shown"]


@pytest.mark.slow
def test_the_pages_are_built_without_warnings(tmp_path):
    pytest.importorskip("pdoc")
    command = [sys.executable, Path(__file__).with_name("api_docs.py"), tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0 and not result.stderr, result.stderr
    modules = [path.relative_to(ROOT).with_suffix("") for path in PACKAGE if path.parent.name != "config"]  # one page
    modules = [path.parent if path.name == "__init__" else path for path in modules]
    assert not [module for module in modules if not (tmp_path / f"{module}.html").is_file()]
    pages = {name: text(tmp_path / "loong_jax" / f"{name}.html") for name in ("models/attention", "pipeline", "config")}
    assert "query: Float[Array, 'b t n h']" in pages["models/attention"]
    assert "__call__" in pages["pipeline"] and "guidance_scale" in pages["config"]
    front = text(tmp_path / "loong_jax.html")
    assert all(name in front for name in loong_jax.__all__)


def text(page: Path) -> str:
    """What a page says, without its tags."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))).split())
