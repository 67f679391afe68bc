"""kill -9 of one of two processes that train as one: the other ends within a minute and names it.

pytest -m slow -n 0 tests/faults/test_death_of_a_peer.py
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETTINGS = {"train.num_steps": 1_000_000, "train.checkpoint_every": 1_000_000, "train.eval_every": 1_000_000}
SETTINGS |= {
    "train.log_every": 1,
    "model.model_dim": 32,
    "model.num_layers": 1,
    "data.num_frames": 5,
    "data.num_images": 272,
}


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_other_ends_and_says_why(victim, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "JAX_NUM_CPU_DEVICES": "2",
    }
    command = [sys.executable, "-m", "loong_jax.main", "--config=configs/stage2.py:debug", f"--workdir={tmp_path}/w"]
    command += [f"--config.{name}={value}" for name, value in SETTINGS.items()]
    logs = [tmp_path / f"{process}.log" for process in range(2)]
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | {"JAX_PROCESS_ID": str(process)},
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for process, log in enumerate(logs)
    ]
    try:
        metrics = tmp_path / "w" / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):  # until steps are done
            assert [process.poll() for process in processes] == [None, None], "".join(log.read_text() for log in logs)
            time.sleep(0.1)
        processes[victim].send_signal(signal.SIGKILL)
        assert processes[1 - victim].wait(60) == 4
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said = logs[1 - victim].read_text()  # last, but for what gRPC's own threads say at the same time
    host = socket.gethostname()
    assert f"process {1 - victim}: process {victim} on {host} died, or its connection broke: the same" in said
