"""Trainings as processes of their own, that faults can be done to, and what they leave."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).parents[2]
LAUNCHERS = re.compile("JAX_(COORDINATOR|NUM_PROC|PROCESS|LOCAL)|SLURM_|OMPI_|KUBERNETES_|JOB_COMPL|TPU_")
MEASURED = re.compile("_per_second$|_seconds$|^peak_memory|^mfu$")
OFTEN = ("--config.train.log_every=1", "--config.train.checkpoint_every=1", "--config.train.eval_every=5")
# A shell has what it starts in the background ignore Ctrl-C, which trainings started from here would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
DEMO_PARTS = ("image_tokenizer", "tokenizer", "stage1", "stage2", "stage3")
# Small ones, in seconds; between them they have all parts of a state.
COMMANDS = {
    "language_model": (
        "--config=configs/stage2.py:debug",
        "--config.model.model_dim=32",
        "--config.model.num_layers=1",
        "--config.data.num_frames=5",
        "--config.ema_decay=0.99",
        *OFTEN,
    ),
    "tokenizer": (
        "--config=configs/tokenizer.py:debug",
        "--config.data.num_frames=5",
        *OFTEN,
    ),
    "demo": (
        "--config=configs/demo.py:debug",
        *(
            f"--config.{part}.train.{setting}"
            for part in DEMO_PARTS
            for setting in ("log_every=1", "checkpoint_every=1", "eval_every=20")
        ),
    ),
}


def start(workdir: Path, kind: str, *settings: str, num_devices: int = 0, num_processes: int = 1) -> list:
    """The processes of one training, a device each or sharing its devices; what they say goes to ``<workdir>.log``.

    Programs of one device come out of the compilation cache when a training starts again.
    """
    environment = {name: value for name, value in os.environ.items() if not LAUNCHERS.match(name)}
    environment["JAX_NUM_CPU_DEVICES"] = str(max(1, num_devices // num_processes))
    if num_processes > 1:
        with socket.create_server(("127.0.0.1", 0)) as free:
            environment["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{free.getsockname()[1]}"
        environment["JAX_NUM_PROCESSES"] = str(num_processes)
    command = [sys.executable, "-m", "loong_jax.main", *COMMANDS[kind], f"--workdir={workdir}", *settings]
    with log_of(workdir).open("a") as log:
        return [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment | ({"JAX_PROCESS_ID": str(index)} if num_processes > 1 else {}),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            for index in range(num_processes)
        ]


def finish(processes: list, workdir: Path, expected: int = 0, seconds: float = 600) -> None:
    """Wait for the end of processes, with this exit code."""
    codes = [process.wait(seconds) for process in processes]
    assert codes == [expected] * len(codes), log_of(workdir).read_text()[-3000:]


def log_of(workdir: Path) -> Path:
    return workdir.with_name(workdir.name + ".log")


def wait_for_step(process: subprocess.Popen, workdir: Path, step: int) -> bool:
    """Wait until the training has logged ``step``; whether it still runs then."""
    while process.poll() is None and last_step(workdir) < step:
        time.sleep(0.005)
    return process.poll() is None


def last_step(workdir: Path) -> int:
    lines = records(workdir)
    return lines[-1]["step"] if lines else 0


def records(workdir: Path) -> list[dict]:
    """All complete records of the metrics, without what the clock and the machine say."""
    path = workdir / "metrics.jsonl"
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    return [{name: value for name, value in json.loads(line).items() if not MEASURED.search(name)} for line in lines]


def newest(workdir: Path) -> Path:
    """The newest checkpoint."""
    folders = [path for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()]
    return max(folders, key=lambda path: int(path.name))


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by their names."""
    found = {}
    for item in sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "meta"):
        tree = ocp.Checkpointer(ocp.StandardCheckpointHandler()).restore(item, args=ocp.args.StandardRestore())
        found |= {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(tree)}
    return found


def assert_same_run(broken: Path, unbroken: Path) -> None:
    """Bit for bit: parameters, moments, codebook, metrics, and the place in the data."""
    assert records(broken) == records(unbroken)
    first, second = arrays(newest(broken)), arrays(newest(unbroken))
    assert first.keys() == second.keys() and len(first) > 10
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
    places = [json.loads((newest(run) / "meta" / "metadata").read_text())["place"] for run in (broken, unbroken)]
    assert places[0] == places[1]
