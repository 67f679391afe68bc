"""Every command of the pages, the config files and the launch scripts can run; what a page names exists.

Nothing is trained: commands are parsed into jobs as ``main`` does it.
"""

import ast
import dataclasses
import importlib.util
import inspect
import os
import re
import shlex
import stat
import subprocess
from pathlib import Path

import pytest
from absl import flags
from code_names import PACKAGE, names_of_the_code, parse
from commands import MAIN, check_order, parse_job
from pages import PAGES, README, ROOT, Page, broken_links

import loong_jax
from loong_jax.config import JOBS, SamplingConfig
from loong_jax.config_dict import to_config_dict

EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def commands_of(*pages: Page, jobs: bool) -> list:
    """The commands of pages that are jobs, or that are not, as parameters of a test."""
    found = [(page, command) for page in pages for command in page.commands if (command[:3] == MAIN) == jobs]
    return [pytest.param(command, id=f"{page.name}: {shlex.join(command)}") for page, command in found]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_readme_has_the_commands_that_a_user_needs():
    words = [word for command in README.commands for word in command]
    assert {"pip", "pytest", "--config=configs/demo.py", "--config=configs/sample.py"} <= set(words)


def test_every_config_has_its_command_in_the_page_of_configs():
    [page] = [page for page in PAGES if page.name == "configs/README.md"]
    named = {re.sub(r":.*", "", command[3]) for command in page.commands if command[:3] == MAIN}
    assert named == {f"--config=configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    for file, row in re.findall(r"^\| `(\w+\.py)` (.*)$", page.text, re.MULTILINE):
        for variant in re.findall(r"`:([\w,]+)`", row):
            parse_variant(file, variant)


def parse_variant(file: str, variant: str) -> None:
    before = ["--config.init_from=../low"] if "high" in variant else []  # whose encoder it keeps
    parse_job([*MAIN, f"--config=configs/{file}:{variant}", "--workdir=w", *before])


@pytest.mark.parametrize("command", commands_of(*PAGES, jobs=True))
def test_a_job_of_a_page_is_possible(command):
    parse_job(command)


@EVERY_PAGE
def test_what_a_page_uses_is_trained_before_by_it_or_by_a_page_that_it_links_to(page):
    before = [] if page is README else page.linked()
    check_order([command for each in (*before, page) for command in each.commands if command[:3] == MAIN])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--config=configs/absent.py --workdir=w", "absent.py"),
        ("--config=configs/stage1.py:800m --workdir=w", "800m"),
        ("--config=configs/stage1.py --workdir=w --config.data.sauce=x", "sauce"),
        ("--config=configs/stage1.py --workdir=w --config.data.source=folder", "write folder:DIR"),
        ("--config=configs/stage1.py --workdir=w --wordkir=w", "wordkir"),
        ("--config=configs/stage1.py --workdir=w again", "again"),
    ],
)
def test_a_wrong_command_would_be_found(arguments, said):
    with pytest.raises((AssertionError, AttributeError, KeyError, OSError, ValueError, flags.Error), match=said):
        parse_job([*MAIN, *arguments.split()])


@pytest.mark.parametrize(
    ("commands", "said"),
    [
        (["sample.py --config.model_path=../stage3"], "trains model_path runs/stage3"),
        (["tokenizer.py --workdir=runs/tokenizer --config.init_from=../images"], "trains init_from runs/images"),
        (["stage1.py --workdir=runs/stage1"], "trains tokenizer_path runs/tokenizer"),
        (["tokenizer.py --workdir=a/tokenizer", "stage1.py --workdir=b/stage1"], "b/tokenizer"),
        (["tokenizer.py:small --workdir=runs/tokenizer", "stage1.py --workdir=runs/stage1"], "1024 == 8192"),
    ],
)
def test_a_wrong_order_would_be_found(commands, said):
    with pytest.raises(AssertionError, match=said):
        check_order([[*MAIN, *f"--config=configs/{command}".split()] for command in commands])


def extras() -> dict[str, list[str]]:
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    [value] = [node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "extras_require"]
    return ast.literal_eval(value)


@pytest.mark.parametrize("command", commands_of(*PAGES, jobs=False))
def test_another_command_of_a_page_is_possible(command):
    while re.fullmatch(r"[A-Z_]+=.*", command[0]):
        assert command[0].partition("=")[0] in names_of_the_code()
        command = command[1:]
    match command:
        case ["python3", "-m", "venv", _]:
            pass
        case [".", activate]:
            assert ["python3", "-m", "venv", activate.removesuffix("/bin/activate")] in README.commands
        case ["pip", "install", "-e", target]:
            path, named = re.fullmatch(r"([^\[]+)(?:\[(.*)\])?", target).groups()
            assert (ROOT / path / "setup.py").is_file()
            assert set((named or "").split(",")) - {""} <= extras().keys()
        case ["pip", "install", package]:
            assert not package.startswith("-")
        case ["pytest" | "tensorboard" as tool, *arguments]:
            assert any(requirement.startswith(tool) for wanted in extras().values() for requirement in wanted)
            assert all((ROOT / argument).is_file() for argument in arguments if argument.endswith(".py"))
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module)
        case ["python", script, *arguments]:
            source = (ROOT / script).read_text(encoding="utf-8")
            assert all(f'"{flag}"' in source for flag in re.findall(r"--\w+", " ".join(arguments)))
        case ["sbatch", *words]:
            script = next(word for word in words if not word.startswith("-"))
            assert (ROOT / script).is_file()
        case [script, *_]:
            assert (ROOT / script).is_file() and os.access(ROOT / script, os.X_OK), f"no test knows {command}"


def test_tests_are_installed_before_they_run():
    block = next(text for kind, text in README.blocks if kind == "bash" and "pytest" in text)
    assert block.index("[test]") < block.rindex("pytest")


def config_commands(path: Path) -> list[list[str]]:
    """The commands in the docstring of a config file."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    indented = re.sub(r"\\\n\s*", " ", docstring).splitlines()
    return [shlex.split(line) for line in indented if line.startswith("    python")]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_a_config_begins_with_its_command(path):
    [command] = config_commands(path)
    assert command[:3] == MAIN
    job, _ = parse_job(command)
    assert f"configs/{path.name}" in command[3]
    named = re.findall(r"`:([\w,]+)`", path.read_text(encoding="utf-8"))
    for variant in named:
        parse_variant(path.name, variant)
    for flag in re.findall(r"`--config\.([a-z_.]+)", path.read_text(encoding="utf-8")):
        assert_setting(flag, to_config_dict(job))


def assert_setting(flag: str, values) -> None:
    for name in flag.split("."):
        assert name in values, f"--config.{flag}: there is no {name}"
        values = values[name]


@pytest.mark.parametrize("size", ["", "700m", "3b", "7b", "small", "debug"])
@pytest.mark.parametrize("script", [ROOT / "launch" / "one_machine.sh"], ids=lambda path: path.stem)
def test_a_launch_script_starts_jobs_that_fit_together(script, size, tmp_path):
    """With a ``python`` that only writes down what it is asked to do."""
    assert script.stat().st_mode & stat.S_IXUSR
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tmp_path}/asked\n')
    python.chmod(0o755)
    environment = os.environ | {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    arguments = ["VIDEOS", "RUNS", *([size] if size else [])]
    subprocess.run(["bash", script, *arguments], env=environment, check=True, capture_output=True, timeout=60)
    asked = [["python", *line.split()] for line in (tmp_path / "asked").read_text().splitlines()]
    commands = [command for command in asked if "--only_check_args" not in command]
    assert len(commands) == 6 and all(command[:3] == MAIN for command in asked)
    check_order(commands)
    assert all("RUNS/" in str(parse_job(command)[1]) for command in commands)


@EVERY_PAGE
def test_a_page_begins_with_what_it_is_about(page):
    heading, empty, text = page.text.splitlines()[:3]
    assert heading.startswith("# ") and not empty and re.match(r"[A-Z`\d]", text)


@EVERY_PAGE
def test_links_lead_somewhere(page):
    assert not broken_links(page)


def test_every_page_is_found_from_the_readme():
    found = [README]
    for page in found:
        found += [other for other in page.linked() if other not in found]
    assert {page.name for page in found} == {page.name for page in PAGES}


@EVERY_PAGE
def test_files_that_a_page_names_exist(page):
    maps = [text for kind, text in page.blocks if kind == ""]
    words = [word for text in [*page.spans, *maps] for word in re.split(r"[\s,]+", text)]
    files = [word for word in words if re.fullmatch(r"[\w.-]+(/[\w.-]+)*(\.(py|sh|sbatch|md|toml|png|model)|/)", word)]
    files = [file for file in files if not file.startswith("runs/")]  # what the commands make
    assert not [file for file in files if not page.has(file)]
    assert len(files) > 2


def test_the_readme_names_every_room():
    for folder in (ROOT / "loong_jax").iterdir():
        if (folder / "__init__.py").is_file():
            assert f"{folder.name}/" in README.text


@pytest.mark.parametrize("page", [page for page in PAGES if page is not README], ids=lambda page: page.name)
def test_a_page_names_every_file_of_its_room(page):
    if page.path.name == "README.md":
        files = {path.name for path in page.path.parent.iterdir() if path.suffix in (".py", ".sh", ".sbatch")}
        assert files - {"__init__.py"} <= set(page.spans)


@EVERY_PAGE
def test_settings_that_a_page_names_exist(page):
    jobs = [to_config_dict(job()) for job in JOBS.values()]
    groups = {name for job in jobs for name in job if hasattr(job[name], "keys")}
    named = re.findall(r"--config\.([a-z0-9_.]*[a-z0-9_])", page.prose)
    named += [span for span in (span.partition("=")[0] for span in page.spans) if span.split(".")[0] in groups]
    for flag in named:
        if not page.has(flag):  # as tokenizer.py
            assert any(_has(values, flag.split(".")) for values in jobs), f"--config.{flag}"


def _has(values, names) -> bool:
    for name in names:
        if not hasattr(values, "keys") or name not in values:
            return False
        values = values[name]
    return True


@EVERY_PAGE
def test_names_in_a_page_occur_in_the_code(page):
    names = [word for span in page.spans if re.fullmatch(r"[A-Za-z_][\w.]*", span) for word in span.split(".")]
    assert not set(names) - names_of_the_code()


@EVERY_PAGE
def test_python_of_a_page(page):
    """Names of the package and their arguments are as they are called."""
    trees = [ast.parse(text) for kind, text in page.blocks if kind == "python"]
    spans = [span for span in page.spans if re.fullmatch(r"loong_jax\.\w+", span)]
    trees += [ast.parse(span) for span in spans if not (ROOT / "loong_jax" / span.removeprefix("loong_jax.")).exists()]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "loong_jax":
            assert node.attr in loong_jax.__all__, f"loong_jax.{node.attr}"
        if isinstance(node, ast.ImportFrom) and node.module.startswith("loong_jax."):
            source = ROOT.joinpath(*node.module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
            defined = {getattr(part, "name", "") for part in ast.parse(source).body}
            assert {alias.name for alias in node.names} <= defined
    options = {field.name for field in dataclasses.fields(SamplingConfig)}
    options |= set(inspect.signature(loong_jax.Pipeline.__call__).parameters)
    for node in nodes:
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("pipe", "pipe.stream"):
            assert {keyword.arg for keyword in node.keywords} <= options


def sentences_of_the_code() -> list[str]:
    """Every text in the package, with … where a value is put in."""

    def text(node: ast.AST) -> str:
        if isinstance(node, ast.JoinedStr):
            return "".join(text(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
        return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""

    return [found for path in PACKAGE for node in ast.walk(parse(path)) if (found := text(node))]


def test_the_errors_that_are_explained_are_those_of_the_code():
    [page] = [page for page in PAGES if page.path.name == "troubleshooting.md"]
    explained = re.findall(r"^\| `([^`]+)` \|", page.text, re.MULTILINE)
    sentences = sentences_of_the_code()
    patterns = {said: re.compile(".+".join(map(re.escape, re.split("…+", said)))) for said in explained}
    assert len(explained) > 30
    assert not [said for said, pattern in patterns.items() if not any(map(pattern.search, sentences))]
