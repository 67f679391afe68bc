"""Several processes: those that are missing or unlike the first are named at the start, and no death goes unnoticed."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loong_jax.config import DataConfig, TokenizerJob
from loong_jax.data.fingerprint import data_fingerprint
from loong_jax.peers import check_alike, facts_of

ROOT = Path(__file__).parents[1]


class Store:
    """JAX's key-value store, of which two processes have answered."""

    def __init__(self, facts: dict):
        self._values = {"loong_jax/facts/1": json.dumps(facts)}

    def key_value_set(self, key: str, value: str) -> None:
        self._values[key] = value

    def blocking_key_value_get(self, key: str, milliseconds: int) -> str:
        if key not in self._values:
            raise RuntimeError("DEADLINE_EXCEEDED")
        return self._values[key]


def test_those_that_are_alike():
    facts = facts_of(TokenizerJob())
    assert check_alike(Store(facts | {"host": "b"}), 0, 2, facts, 1.0) == [facts, facts | {"host": "b"}]
    assert facts["host"] == socket.gethostname() and facts["devices"] == "8 x cpu"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"jax": "0.9.1"}, r"jax of process 1 on b: 0\.9\.1, of process 0: 0\."),
        ({"devices": "7 x cpu"}, "devices of process 1 on b: 7 x cpu, of process 0: 8 x cpu"),
        ({"data": "Folder: No such file"}, "data of process 1 on b: Folder: No such file, of process 0"),
    ],
)
def test_one_that_differs(other, said):
    facts = facts_of(TokenizerJob())
    with pytest.raises(ValueError, match=f"^The processes are not alike: {said}.*: start all of them with the same"):
        check_alike(Store(facts | {"host": "b"} | other), 0, 2, facts, 1.0)


def test_another_setting_is_named():
    with pytest.raises(ValueError, match="in process 1 on b seed is 3, in process 0 0: start all"):
        check_alike(Store(facts_of(TokenizerJob(seed=3)) | {"host": "b"}), 0, 2, facts_of(TokenizerJob()), 1.0)


def test_one_that_is_missing():
    with pytest.raises(ValueError, match=r"Of 3 processes 2 did not answer within 1 s.* are 0 on \S+, 1 on b:"):
        check_alike(Store(facts_of(TokenizerJob()) | {"host": "b"}), 0, 3, facts_of(TokenizerJob()), 1.0)


def test_fingerprints_of_data(tmp_path):
    def of(**settings) -> str:
        return data_fingerprint(DataConfig(**settings))

    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.mp4").write_bytes(b"12")
    source = f"folder:{tmp_path}"
    first = of(source=source)
    assert re.fullmatch("[0-9a-f]{12}", first) and of(source=source) == first
    assert len({of(), first, of(source=source, image_source=source), of(source=f"web_shards:{tmp_path}")}) == 4
    (tmp_path / "sub" / "a.mp4").write_bytes(b"123")
    assert of(source=source) != first
    assert of(source="folder:/nowhere/at/all") == "/nowhere/at/all: No such file or directory"
    assert of(source=f"cut_list:{tmp_path / 'sub' / 'a.mp4'}") != of(source=source)


# Without a training: what is done inside is a sleep, or what the test says.
SCRIPT = """
import sys, time
from loong_jax import distributed
from loong_jax.config import TokenizerJob
from loong_jax.peers import Watch, together
distributed.connect(30)
try:
    with together(TokenizerJob(seed={seed}), timeout=5.0):
        print("working", flush=True)
        {work}
except ValueError as error:
    print("error:", error, flush=True)
    distributed.leave(2)
"""


def start(works: list[str], seeds: tuple[int, ...] = (0, 0)) -> list[subprocess.Popen]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(len(works))}
    return [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT.format(work=work, seed=seed)],
            cwd=ROOT,
            env=environment | {"JAX_PROCESS_ID": str(process)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process, (work, seed) in enumerate(zip(works, seeds, strict=True))
    ]


def ends(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


SLOW_TO_TELL = "lost = Watch._lost; Watch._lost = lambda *a: (time.sleep(2), lost(*a)); time.sleep(100)"


@pytest.mark.parametrize(
    "victim, work",
    [
        (0, "time.sleep(100)"),
        (0, SLOW_TO_TELL),  # JAX, which aborts the process, is the first to notice
        pytest.param(1, "time.sleep(100)", marks=pytest.mark.slow),
    ],
)
def test_the_death_of_one_ends_the_other_with_its_name(victim, work):
    processes = start([work] * 2)
    assert [process.stdout.readline() for process in processes] == ["working\n"] * 2
    processes[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    code, output = ends(processes)[1 - victim]
    assert code == 4 and time.monotonic() - killed < 20, output
    host = re.escape(socket.gethostname())
    said = f"process {1 - victim}: process {victim} on {host} died, or its connection broke: the same command, on all"
    assert re.search(f"^{said}", output, re.MULTILINE), output  # JAX may have said something, too


@pytest.mark.slow
def test_those_that_end_well_or_with_a_mistake_of_all():
    assert ends(start(["pass", "time.sleep(1)"])) == [(0, "working\n")] * 2
    for code, output in ends(start(["raise ValueError('of all')"] * 2)):
        assert (code, output) == (2, "working\nerror: of all\n")


def test_processes_with_other_settings_do_not_start():
    for code, output in ends(start(["pass"] * 2, seeds=(0, 1))):
        assert code == 2 and "seed is 1, in process 0 0" in output and "working" not in output
