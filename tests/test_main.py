"""The command line as a user meets it: a mistake is one sentence on stderr, with exit code 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loong_jax.command_line import explain, help_text, locate_config, one_line, wants_help
from loong_jax.config import ConfigError

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "loong_jax.main", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config=configs/stage2.py:debug", "--config.train.nmu_steps=3"], "nmu_steps"),
        (["--config=configs/stage2.py:huge"], "'huge'"),
        (["--config=configs/stage2.py:debug", "--config.data.text_drop=2.0"], "text_drop=2.0"),
        (["--config=configs/absent.py"], "absent.py"),
        (
            ["--config=configs/stage2.py:debug", "--config.loss.early_weigth=1"],
            "error: --config.loss.early_weigth is not",
        ),
        (["--config=configs/stage2.py:debug", "--config.train.num_steps=many"], "num_steps='many' is not possible"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, said, tmp_path):
    result = run(*arguments, f"--workdir={tmp_path}")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and said in result.stderr
    assert "Traceback" not in result.stderr


TOKENIZER = "--config=configs/tokenizer.py:debug"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            [TOKENIZER, "--config.tokenizer.quantizer.distanc=l2"],
            "--config.tokenizer.quantizer.distanc is not a setting (did you mean distance?): tokenizer.quantizer has",
        ),
        ([TOKENIZER, "--config.tokeniser.quantizer.dim=1"], "(did you mean tokenizer?): the config has data,"),
        ([TOKENIZER, "--config.seed.x=1"], "--config.seed.x is not a setting: seed is a single value, 0."),
        ([TOKENIZER, "--config.data=1"], "--config.data is a group of settings: set one of cache_ids,"),
        ([TOKENIZER, "--config.seed=one"], "--config.seed='one' is not possible: it must be a whole number."),
        ([TOKENIZER, "--config.seed", "1.5"], "--config.seed='1.5' is not possible: it must be a whole number."),
        ([TOKENIZER, "--config.data.fps=fast"], "--config.data.fps='fast' is not possible: it must be a number."),
        ([TOKENIZER, "--config.data.require_caption=2"], "must be True or False"),
        ([TOKENIZER, "--config.tokenizer.spatial_strides=(2,'a')"], "write whole numbers, as in (1,2)"),
        (
            ["--config.seed=1", TOKENIZER],
            "--config.seed=1 comes before --config=configs/tokenizer.py:debug: write it after",
        ),
        (
            ["--config=configs/tokeniser.py"],
            "There is no config file configs/tokeniser.py; there are: configs/check_data.py,",
        ),
        (["--config=configs"], "There is no config file configs; there are: configs/check_data.py,"),
        (["--config=configs/tokenizer.py:dbug"], "the config's variant='dbug' is not possible: choose one of 'debug',"),
        (["--config=configs/sample.py", "--config.sampling.top_k=(4,2)", "--config.sed=1"], "--config.sed is not"),
        ([], "--config=configs/NAME.py is needed; there are: configs/check_data.py, "),
    ],
)
def test_what_is_wrong_with_the_arguments(arguments, said, monkeypatch):
    monkeypatch.chdir(ROOT)
    message = explain([*arguments, "--workdir=w"], ValueError("told\nin several lines"))
    assert said in message and "\n" not in message


def test_help_says_what_there_is_and_what_can_be_set(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    every = help_text(["--help"])
    assert "configs/sample.py          Sample videos from a trained language model." in every
    assert every.count("    configs/") == len(list((ROOT / "configs").glob("*.py")))
    own = help_text(["--config", "configs/sample.py:debug", "--help"])
    assert own.startswith("Sample videos from") and "`:debug` samples ten" in own
    assert "\n    --config.sampling.seconds=10.0\n" in own and "\n    --config.prompt=" in own
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text("def get_config(variant):\n    return None\n")
    (tmp_path / "configs" / "broken.py").write_text("def\n")
    monkeypatch.chdir(tmp_path)
    assert set(every.splitlines()) - set(help_text(["--help"]).splitlines()) == set()
    assert {"    configs/mine.py", "    configs/broken.py"} < set(help_text(["--help"]).splitlines())
    with pytest.raises(ConfigError, match="fails with SyntaxError"):
        help_text(["--config=configs/broken.py", "--help"])
    monkeypatch.chdir(ROOT)
    assert wants_help(["main", "-h"]) and not wants_help(["main", "--config.prompt=--help me"])
    assert run("--help").stdout == every + "\n"
    end = run("--config=configs/nothing.py", "--help")
    assert end.returncode == 2 and "There is no config file configs/nothing.py; there are" in end.stderr


@pytest.mark.parametrize("flag", ["--config=FILE", "-config=FILE", "--config FILE"])
def test_a_config_that_is_not_here_is_the_packages_own(flag, tmp_path, monkeypatch, capsys):
    def arguments(file: str) -> list[str]:
        return ["main", "--workdir=w", *flag.replace("FILE", file).split(), "--config.seed=1"]

    monkeypatch.chdir(tmp_path)
    own = f"{ROOT}/configs/sample.py"
    assert locate_config(arguments("configs/sample.py:debug")) == arguments(f"{own}:debug")
    assert capsys.readouterr().err == f"There is no configs/sample.py here: taking that of the package, {own}.\n"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "sample.py").touch()
    for file in ("configs/sample.py:debug", "./configs/sample.py", own):
        assert locate_config(arguments(file)) == arguments(file)
    assert capsys.readouterr().err == ""


def test_configs_that_are_not_here_are_named(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").touch()
    monkeypatch.chdir(tmp_path)
    for file in ("configs/simple.py", "configs"):
        with pytest.raises(
            ConfigError, match=f"no config file {file}; .*configs/mine.py, configs/sample.py, .*er.py.$"
        ):
            locate_config([f"--config={file}"])
    with pytest.raises(ConfigError, match="no config file sample.py; there are: configs/check_data.py, .*er.py.$"):
        locate_config(["--config=sample.py"])
    with pytest.raises(ConfigError, match="no config file configs/x/sample.py; there are: configs/check_data.py"):
        locate_config(["--config=configs/x/sample.py"])


@pytest.mark.parametrize("name", ["checkpoints", "language_model.safetensors"])
def test_the_files_of_a_model_are_not_written_over(name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / "config.json").write_text("the model's")
    result = run("--config=configs/sample.py", f"--workdir={tmp_path}")
    assert result.returncode == 2 and "holds a trained model, and sample writes files of its own" in result.stderr
    assert (tmp_path / "config.json").read_text() == "the model's"


def test_a_config_file_that_fails(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config(variant):\n    return 1 / 0\n")
    message = explain([f"--config={tmp_path}/mine.py", "--workdir=w"], TypeError())
    assert message == f"Config {tmp_path}/mine.py fails with ZeroDivisionError: division by zero."


def test_what_no_check_knows_is_told_in_one_line():
    arguments = [f"--config={ROOT}/configs/tokenizer.py:debug", "--workdir=w", "--wrokdir=v"]
    assert explain(arguments, ValueError("Unknown flag\n  'wrokdir'.")) == "Unknown flag 'wrokdir'."
    assert one_line(KeyError()) == "KeyError"
    assert one_line(PermissionError(13, "Permission denied", "/root/w")) == "/root/w: Permission denied."
    full = OSError(28, "No space left on device")  # as writing says it
    assert one_line(full) == "a file that was read or written: No space left on device."


def test_an_end_at_once_shows_the_cursor_that_a_bar_hides():
    ours, theirs = os.openpty()
    code = "from loong_jax.endings import end_at_once; end_at_once(75)"
    assert subprocess.run([sys.executable, "-c", code], stdout=theirs, timeout=60).returncode == 75
    assert os.read(ours, 100) == b"\x1b[?25h"
    os.close(ours), os.close(theirs)


def test_ctrl_c_is_not_lost_where_a_library_calls_back():
    code = """
import gc, os, signal
from loong_jax import main
main.app.run = lambda *_, **__: gc.collect()
gc.callbacks.append(lambda *_: os.kill(os.getpid(), signal.SIGINT))
main.run()
"""
    environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    command = [sys.executable, "-c", f"import signal; signal.signal(2, signal.default_int_handler){code}"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (75, "interrupted: the same command goes on.\n")
