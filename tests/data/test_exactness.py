"""The order is a function of seed and step, whatever workers and hosts there are, wherever a training was killed."""

import hashlib
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grain
import numpy as np
import pytest
from media import encode_video

from loong_jax.config import DataConfig
from loong_jax.data.loader import video_batches
from loong_jax.data.sources import make_source

BATCH = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for index in range(11):  # no multiple of the batch
        (folder / f"{index}.mp4").write_bytes(encode_video(12, 16 * index, step=5))
    return folder


def stream(folder, num_workers=0, **process):
    data = DataConfig(
        source=f"3*folder:{folder}|moving_digits", frame_size=32, num_frames=5, fps=8, num_workers=num_workers
    )
    source = make_source(data, "train", num_examples=20)
    return video_batches(source, data, batch_size=BATCH, seed=1, **process)


def digests(batches):
    return [hashlib.sha256(batch["video"].tobytes()).hexdigest() for batch in batches]


@pytest.fixture(scope="module")
def unbroken(folder):
    return list(itertools.islice(stream(folder).iterate(), 8))


@pytest.mark.parametrize("num_workers", [0, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 2))])
def test_resumed_from_a_checkpoint_or_a_step(folder, num_workers, unbroken):
    batches = stream(folder, num_workers)
    count = 2 if num_workers else 6  # the check starts the workers anew at every step
    limited = grain.experimental.LimitIterDataset(batches.dataset(0), count)
    grain.experimental.assert_equal_output_after_checkpoint(limited)
    assert digests(itertools.islice(batches.iterate(3), 4)) == digests(unbroken[3:7])


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_hosts_share_the_global_batches(folder, num_hosts, unbroken):
    shares = [
        itertools.islice(stream(folder, process_index=index, process_count=num_hosts).iterate(), len(unbroken))
        for index in range(num_hosts)
    ]
    for parts, whole in zip(zip(*shares, strict=True), unbroken, strict=True):
        np.testing.assert_array_equal(np.concatenate([part["video"] for part in parts]), whole["video"])


PROGRAM = """
import sys
import time
from pathlib import Path
sys.path.insert(0, {here!r})
if __name__ == "__main__":
    from test_exactness import digests, stream
    for step, batch in enumerate(stream({folder!r}, {num_workers}).iterate({start}), {start}):
        print(step, *digests([batch]), flush=True)
"""


def children(process: int) -> list[int]:
    """Processes that ``process`` has started and that are there."""
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def is_running(process: int) -> bool:
    """A zombie has ended and waits to be asked how."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_in_an_epoch_the_next_batch_is_the_exact_next_one(folder, num_workers, unbroken, tmp_path):
    script = tmp_path / "train.py"
    expected = digests(unbroken)
    for start, stop in ((0, 3), (4, 7)):
        fields = dict(here=os.path.dirname(__file__), folder=str(folder), num_workers=num_workers, start=start)
        script.write_text(PROGRAM.format(**fields))
        with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
            seen = [next(process.stdout).split() for _ in range(start, stop + 1)]
            workers = children(process.pid)
            process.send_signal(signal.SIGKILL)
        assert len(workers) >= num_workers
        for _ in range(200):
            if not any(is_running(worker) for worker in workers):
                break
            time.sleep(0.1)
        assert not any(is_running(worker) for worker in workers), "a worker outlived the process that it works for"
        assert seen == [[str(step), expected[step]] for step in range(start, stop + 1)]
