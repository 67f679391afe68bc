"""Every command of the README, the config files and the launch scripts can run; what the README names exists.

Nothing is trained: commands are parsed into jobs as ``main`` does it.
"""

import ast
import dataclasses
import inspect
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from commands import MAIN, check_order, find_commands, parse_job

import loong_jax
from loong_jax.config import JOBS, SamplingConfig
from loong_jax.config_dict import to_config_dict

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Kinds of block: bash is run, python is read as Python, and what has no language is a map of the code.
BLOCKS = [(kind, text) for kind, text in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)]
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
CODE_SPANS = re.findall(r"`([^`]+)`", PROSE)
COMMANDS = find_commands(README)
JOB_COMMANDS = [command for command in COMMANDS if command[:3] == MAIN]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_readme_has_the_commands_that_a_user_needs():
    words = [word for command in COMMANDS for word in command]
    assert {"pip", "pytest", "--config=configs/demo.py", "--config=configs/sample.py"} <= set(words)


@pytest.mark.parametrize("command", JOB_COMMANDS, ids=shlex.join)
def test_a_job_of_the_readme_is_possible(command):
    parse_job(command)


def test_the_readme_trains_before_it_uses():
    check_order(JOB_COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--config=configs/absent.py --workdir=w", "absent.py"),
        ("--config=configs/stage1.py:800m --workdir=w", "800m"),
        ("--config=configs/stage1.py --workdir=w --config.data.sauce=x", "sauce"),
        ("--config=configs/stage1.py --workdir=w --config.data.source=folder", "write folder:DIR"),
        ("--config=configs/stage1.py --workdir=w --wordkir=w", "wordkir"),
        ("--config=configs/stage1.py", "no --workdir"),
        ("--config=configs/stage1.py --workdir=w again", "again"),
    ],
)
def test_a_wrong_command_would_be_found(arguments, said):
    with pytest.raises((AssertionError, AttributeError, KeyError, OSError, ValueError, flags.Error), match=said):
        parse_job([*MAIN, *arguments.split()])


@pytest.mark.parametrize(
    ("commands", "said"),
    [
        (["sample.py --workdir=runs/sample"], "trains model_path runs/stage3"),
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


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if command[:3] != MAIN], ids=lambda command: shlex.join(command)
)
def test_another_command_of_the_readme_is_possible(command):
    match command:
        case ["python3", "-m", "venv", _] | ["git", "clone", _] | ["cd", _]:
            pass
        case [".", activate]:
            assert ["python3", "-m", "venv", activate.removesuffix("/bin/activate")] in COMMANDS
        case ["pip", "install", "-e", target]:
            path, named = re.fullmatch(r"([^\[]+)(?:\[(.*)\])?", target).groups()
            assert (ROOT / path / "setup.py").is_file()
            assert set((named or "").split(",")) - {""} <= extras().keys()
        case ["pytest"]:
            assert any(requirement.startswith("pytest") for requirement in extras()["test"])
        case ["pytest", *arguments]:
            collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments]
            result = subprocess.run(collect, capture_output=True, text=True, timeout=300)
            assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
        case [script, *_]:
            assert (ROOT / script).is_file() and os.access(ROOT / script, os.X_OK), f"no test knows {command}"


def test_tests_are_installed_before_they_run():
    block = next(text for kind, text in BLOCKS if kind == "bash" and "pytest" in text)
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
    for variant in named:  # of this file or, where it says so, of another
        before = ["--config.init_from=../low"] if "high" in variant else []  # whose encoder it keeps
        parse_job([*MAIN, f"--config=configs/{path.name}:{variant}", "--workdir=w", *before])
    for flag in re.findall(r"`--config\.([a-z_.]+)", path.read_text(encoding="utf-8")):
        assert_setting(flag, to_config_dict(job))


def assert_setting(flag: str, values) -> None:
    for name in flag.split("."):
        assert name in values, f"--config.{flag}: there is no {name}"
        values = values[name]


@pytest.mark.parametrize("size", ["", "700m", "3b", "7b", "debug"])
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
    commands = [["python", *line.split()] for line in (tmp_path / "asked").read_text().splitlines()]
    assert len(commands) >= 6 and all(command[:3] == MAIN for command in commands)
    check_order(commands)
    assert all("RUNS/" in str(parse_job(command)[1]) for command in commands)


def test_files_that_the_readme_names_exist():
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", PROSE) if "://" not in link]
    maps = [text for kind, text in BLOCKS if kind == ""]
    words = [word for text in [*CODE_SPANS, *maps] for word in re.split(r"[\s,]+", text)]
    files = [word for word in words if re.fullmatch(r"[\w.-]+(/[\w.-]+)*(\.(py|sh|md|toml|png|model)|/)", word)]
    files = [file for file in files if not file.startswith("runs/")]  # what the commands make
    missing = [
        file for file in links + files if not (ROOT / file).exists() and not (ROOT / "loong_jax" / file).exists()
    ]
    assert not missing
    assert len(files) > 8


def test_the_readme_names_every_room():
    for folder in (ROOT / "loong_jax").iterdir():
        if (folder / "__init__.py").is_file():
            assert f"{folder.name}/" in README


def test_settings_that_the_readme_names_exist():
    jobs = [to_config_dict(job()) for job in JOBS.values()]
    for flag in re.findall(r"--config\.([a-z_.]*[a-z_])", PROSE):
        assert any(_has(values, flag.split(".")) for values in jobs), f"--config.{flag}"


def _has(values, names) -> bool:
    for name in names:
        if name not in values:
            return False
        values = values[name]
    return True


def test_python_of_the_readme():
    """Names of the package and their arguments are as they are called."""
    trees = [ast.parse(text) for kind, text in BLOCKS if kind == "python"]
    spans = [span for span in CODE_SPANS if re.fullmatch(r"loong_jax\.\w+", span)]
    trees += [ast.parse(span) for span in spans if not (ROOT / "loong_jax" / span.removeprefix("loong_jax.")).exists()]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "loong_jax":
            assert node.attr in loong_jax.__all__, f"loong_jax.{node.attr}"
    options = {field.name for field in dataclasses.fields(SamplingConfig)}
    options |= set(inspect.signature(loong_jax.Pipeline.__call__).parameters)
    for node in nodes:
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("pipe", "pipe.stream"):
            assert {keyword.arg for keyword in node.keywords} <= options
