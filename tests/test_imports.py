"""The rooms of the package and which way imports point: a file says no more than its room may know."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "loong_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

SAMPLING = {"appending", "config", "config_dict", "vocab", "sharding", "checkpoint", "models"}
SAMPLING |= {"tokenizer", "data", "sampling"}
MAY_IMPORT = {
    "config": set(),
    "vocab": set(),
    "distributed": set(),
    "config_dict": {"config"},
    "command_line": {"config", "config_dict"},
    "sharding": {"config"},
    "video": {"config"},
    "video_file": {"config", "video"},
    "checksums": set(),
    "appending": set(),
    "package_weights": set(),
    "weights_file": set(),
    "hub": set(),
    "endings": set(),
    "checkpoint": {"checksums", "distributed"},
    "chips": set(),
    "compiled": set(),
    "models": {"config", "sharding"},
    # A VideoTokenizer loads itself.
    "tokenizer": {"config", "config_dict", "sharding", "checkpoint", "package_weights", "weights_file"},
    "data": {"config", "vocab", "video", "video_file"},
    "sampling": SAMPLING,
    "evaluation": SAMPLING | {"video", "video_file", "package_weights"},
    "training": (SAMPLING | {"video", "evaluation", "chips", "endings", "distributed"}) - {"sampling"},
}
TOP = {
    "__init__",
    "pipeline",
    "interop",
    "model_folder",
    "export",
    "previews",
    "sample",
    "sample_files",
    "serving",
    "demo",
    "claims",
    "evaluate",
    "estimate",
    "programs",
    "main",
    "doctor",
    "trials",
    "out_of_memory",
    "peers",
}


def room(path: Path) -> str:
    """The folder of a file inside the package, or the file's own name at its top."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_modules(path: Path) -> set[str]:
    """Dotted names of all that a file imports, wherever in it."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively: write the full name."
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def imported_rooms(path: Path) -> set[str]:
    ours = (name.split(".") for name in imported_modules(path))
    return {(parts + ["__init__"])[1] for parts in ours if parts[0] == "loong_jax"}


def test_every_room_has_a_rule():
    assert {room(path) for path in FILES} <= MAY_IMPORT.keys() | TOP


@pytest.mark.parametrize("path", [p for p in FILES if room(p) not in TOP], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_room_may(path):
    forbidden = imported_rooms(path) - MAY_IMPORT[room(path)] - {room(path)}
    assert not forbidden, f"{path.relative_to(ROOT)} must not import {', '.join(sorted(forbidden))}."


def test_rooms_import_each_other_one_way():
    graph: dict[str, set[str]] = {}
    for path in FILES:
        graph.setdefault(room(path), set()).update(imported_rooms(path) - {room(path)})
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the cycle


def test_only_checkpoint_imports_orbax():
    importers = [path for path in FILES if any(name.split(".")[0] == "orbax" for name in imported_modules(path))]
    assert importers == [PACKAGE / "checkpoint.py"]


@pytest.mark.parametrize("path", [*PACKAGE.glob("config/*.py"), PACKAGE / "vocab.py"], ids=lambda p: p.stem)
def test_settings_and_vocabulary_do_without_jax(path):
    assert not {module.split(".")[0] for module in imported_modules(path)} & {"jax", "flax", "numpy"}


def test_no_file_is_two_rooms():
    files = [*FILES, *ROOT.glob("configs/*.py"), *ROOT.glob("tests/**/*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def test_no_module_is_called_utils():
    assert [path for path in FILES if "util" in path.stem] == []
