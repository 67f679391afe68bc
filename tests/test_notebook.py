"""The notebook in launch/: it holds no results, names what there is, and runs from its first cell to its last."""

import ast
import glob
import importlib.util
import re
import subprocess
from pathlib import Path

import nbformat
import pytest
from commands import MAIN, find_commands, parse_job
from nbclient import NotebookClient

import loong_jax

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "launch" / "colab.ipynb"
FPS = 6.5


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def code_of(notebook) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebook_is_whole_and_holds_no_results(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in code_of(notebook):
        assert cell.outputs == [] and cell.execution_count is None and cell.metadata == {}, cell.id
    assert notebook.cells[0].source.startswith("# ")
    lines = [line for cell in notebook.cells for line in cell.source.splitlines() if not line.startswith("python ")]
    assert [line for line in lines if len(line) > 120] == []


def test_the_notebook_installs_before_it_imports(notebook):
    """And all of it is Python that names what the package has: no magics, which other notebooks lack."""
    install, sizes, *others = [ast.parse(cell.source) for cell in code_of(notebook)]
    for tree in (install, sizes):
        assert not any("loong_jax" in ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import))
    for node in (node for tree in others for node in ast.walk(tree)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "loong_jax":
            assert node.attr in [*loong_jax.__all__, "__version__"], f"loong_jax.{node.attr}"


@pytest.mark.parametrize(
    ("source", "beside", "device", "jax", "wanted"),
    [
        ("", ["a-checkout"], "", "0.10.1 cpu", ["loong_jax @ file:///HERE/loong_jax", "jax==0.10.1"]),
        (
            "",
            ["loong_jax-0.1.whl"],
            "accel",
            "0.12.0 tpu",
            ["loong_jax @ file:///HERE/loong_jax-0.1.whl", "jax==0.12.0"],
        ),
        ("git+https://host/r", [], "nvidia", "0.10.0 gpu", ["loong_jax @ git+https://host/r", "jax==0.10.0"]),
        ("x.whl", ["loong_jax-0.1.whl"], "nvidia", "0.10.0 cpu", ["loong_jax[cuda] @ file:///HERE/x.whl"]),  # unseen
        ("x.whl", [], "vfio/", "0.7.2 tpu", ["loong_jax[tpu] @ file:///HERE/x.whl"]),
        ("x.whl", [], "", "0.9.9 cpu", ["loong_jax @ file:///HERE/x.whl"]),
        ("x.whl", [], "", "", ["loong_jax @ file:///HERE/x.whl"]),  # no JAX at all
        ("", [], "", "", None),
    ],
)
def test_what_the_notebook_installs(source, beside, device, jax, wanted, notebook, tmp_path, monkeypatch):
    """With the machine, its JAX and pip replaced: Colab's JAX stays where it is new enough and sees the device."""
    asked = []

    def run(command, **options):
        if "-c" in command:
            return subprocess.CompletedProcess(command, 0, stdout=jax)
        asked.append(command[5:])

    def find(pattern):
        return [f"/dev/{device}0"] if device and pattern.startswith(f"/dev/{device}") else found_by_name(pattern)

    found_by_name = glob.glob
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(glob, "glob", find)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    for name in beside:
        path = tmp_path / ("loong_jax/loong_jax/main.py" if name == "a-checkout" else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    install = code_of(notebook)[0].source.replace('SOURCE = ""', f'SOURCE = "{source}"')
    if wanted is None:
        with pytest.raises(FileNotFoundError, match="no loong_jax beside this notebook: put its wheel there, or set"):
            exec(install, {})
    else:
        exec(install, {})
        assert asked == [[part.replace("/HERE", str(tmp_path)) for part in wanted]]


def test_the_commands_that_the_notebook_shows_are_possible(notebook, monkeypatch):
    monkeypatch.chdir(ROOT)
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    commands = [command for text in texts for command in find_commands(text) if command[:3] == MAIN]
    assert len(commands) >= 2
    for command in commands:
        parse_job(command)


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("LOONG_NOTEBOOK_SMALL", "1")
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    printed = {cell.id: "".join(output.get("text", "") for output in cell.outputs) for cell in code_of(notebook)}
    shown = {
        cell.id: {kind for output in cell.outputs for kind in output.get("data", {})} for cell in code_of(notebook)
    }
    assert printed["install"] == "loong_jax is here already.\n"
    assert re.search(r"^stage3 4/4 loss \d", printed["train"], re.MULTILINE) and "\033" not in printed["train"]
    assert re.search(r"^stage3: .* first latent frame \d+\.\d\d, of the last \d+\.\d\d", printed["loss"], re.MULTILINE)
    for cell, seconds in (("ten_seconds", 2), ("minute", 12), ("from_a_picture", 2), ("own_minute", 12)):
        assert loong_jax.read_video(tmp_path / "runs" / f"{cell}.mp4").shape == (round(seconds * FPS), 256, 256, 3)
    assert all("text/html" in shown[cell] for cell in ("sample", "minute", "image", "own"))
    assert all("image/png" in shown[cell] for cell in ("image", "loss", "strips"))
