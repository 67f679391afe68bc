"""The command line as a user meets it: a mistake is one sentence on stderr, with exit code 2."""

import subprocess
import sys
from pathlib import Path

import pytest

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
    ],
)
def test_a_mistake_is_one_sentence(arguments, said, tmp_path):
    result = run(*arguments, f"--workdir={tmp_path}")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and said in result.stderr
    assert "Traceback" not in result.stderr
