"""Several processes as one: how they find each other, before JAX sees a device, how they speak, and how they end.

JAX itself recognises TPU pods (Compute Engine and GKE), Slurm steps and Open MPI. Anywhere else three environment
variables say who is who: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

JAX is imported where it is needed: mistakes in the settings are said at once, and the doctor runs where it is broken.
"""

import contextlib
import itertools
import os
import re
import socket
import sys
import threading
import time
from typing import Any

_SHARED_TASKS = ("tokenizer", "tokenize", "language_model")
_A_SECOND = 1000  # milliseconds
_A_DAY = 24 * 60 * 60 * _A_SECOND
_meetings, _pieces = itertools.count(), itertools.count()
_COUNTS = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}


def connect(timeout: int = 300) -> None:
    """Join the other processes of this job, if it has any; a process that runs alone starts nothing.

    Raises:
        ValueError: a variable makes no sense, or the others did not answer within ``timeout`` seconds.
    """
    address, counts = os.environ.get("JAX_COORDINATOR_ADDRESS"), _counts()
    if address is not None and not re.fullmatch(r".+:\d+", address):
        raise ValueError(f"JAX_COORDINATOR_ADDRESS={address!r} is not possible: write host:port of process 0.")
    if counts.get("num_processes", 2) == 1 or (address is None and _is_alone()):
        return
    who = f"Process {counts['process_id']}" if "process_id" in counts else "This process"
    who += f" on {socket.gethostname()}"
    import jax

    waiting = threading.Timer(timeout, _give_up, [who, counts.get("num_processes"), address, timeout])
    waiting.daemon = True
    waiting.start()
    try:
        if address is not None and counts.get("process_id") == 0:
            socket.create_server(("", int(address.rpartition(":")[2]))).close()  # JAX crashes where the port is taken
        # JAX kills a process whose own time is over, so that its time is the longer one.
        options = dict(local_device_ids=_all_gpus_of_node(), initialization_timeout=timeout + 60)
        jax.distributed.initialize(address, **counts, **options)
    except (ValueError, RuntimeError, OSError) as error:
        if address is None and not counts and "coordinator_address" in str(error):
            return  # JAX recognises no cluster
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(". ")
        raise ValueError(
            f"{who} cannot join the others ({reason}): set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID, or run it alone with --nodistributed."
        ) from error
    finally:
        waiting.cancel()


def place() -> tuple[int, int]:
    """(index of this process, how many there are); JAX is asked where it has joined others, and not imported."""
    if not _has_joined():
        return 0, 1
    import jax

    return jax.process_index(), jax.process_count()


def is_first() -> bool:
    """Whether this process is the one that writes files and reports progress."""
    return place()[0] == 0


def of_first(value: int) -> int:
    """The int32 that the first process has, in all of them, which call this together."""
    if place()[1] == 1:
        return value
    import numpy as np
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def meet(what: str) -> None:
    """Wait until all processes are here, for as long as it takes; ``what`` is the same in all.

    Not by a collective, which gives up after half a minute where Gloo carries it, between CPUs.
    """
    if place()[1] > 1:
        _client().wait_at_barrier(f"{what}, {next(_meetings)}", _A_DAY)


class SharedWork:
    """A piece of work that all processes do together, and that fails in all where it fails in one.

    All begin the same pieces in the same order, one at a time; each calls ``end`` once.
    """

    def __init__(self):
        number, (self._index, self._count) = next(_pieces), place()
        self._name, self._heard = f"loong_jax/work/{number}", ""
        if self._count > 1 and self._index == 0 and number > 1:
            _client().key_value_delete(f"loong_jax/work/{number - 2}/")  # which all have read

    def meet(self, *, key: str, timeout_ms: int) -> None:
        """Wait until all are here.

        Raises:
            OSError: one of them does not come, for its part has failed.
            TimeoutError: one has not come in time.
        """
        deadline = time.monotonic() + timeout_ms / 1000
        if self._index > 0:
            _client().key_value_set(f"{self._name}/{key}/{self._index}", "")
            self._await(f"{key}/all", 0, deadline)
            return
        for other in range(1, self._count):
            self._await(f"{key}/{other}", other, deadline)
        _client().key_value_set(f"{self._name}/{key}/all", "")

    def end(self, failure: str) -> str:
        """Say what went wrong here, or "".

        Returns:
            What went wrong, and in which process; "" once all have ended well.
        """
        if self._count == 1:
            return failure
        client, failure = _client(), self._heard or (failure and process_label() + failure)
        client.key_value_set(f"{self._name}/end/{self._index}", failure)
        if self._index == 0:
            ends = [client.blocking_key_value_get(f"{self._name}/end/{i}", _A_DAY) for i in range(self._count)]
            client.key_value_set(f"{self._name}/end/all", next(filter(None, ends), ""))
        return client.blocking_key_value_get(f"{self._name}/end/all", _A_DAY)

    def _await(self, key: str, other: int, deadline: float) -> None:
        """Wait for ``key``, which process ``other`` sets unless its part fails."""
        while True:
            try:
                _client().blocking_key_value_get(f"{self._name}/{key}", _A_SECOND)
                return
            except RuntimeError as error:  # of JAX: the second is over
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
            with contextlib.suppress(RuntimeError):  # of JAX: it has not ended
                self._heard = _client().key_value_try_get(f"{self._name}/end/{other}")
            if self._heard:
                raise OSError(self._heard)
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {other} did not come to {key}")


def check_task(task: str) -> None:
    """Raise ValueError where several processes would all do the same work."""
    count = place()[1]
    if task not in _SHARED_TASKS and count > 1:
        raise ValueError(
            f"task {task!r} is the work of one process, and there are {count}: start it on one host, with "
            "--nodistributed."
        )


def process_label() -> str:
    """How messages name this process: "" where it runs alone."""
    index, count = place()
    return f"process {index}: " if count > 1 else ""


def leave(code: int) -> None:
    """End this process at once: one that waited for the others would wait for what it no longer takes part in."""
    if _has_joined():
        sys.stdout.flush()
        sys.stderr.flush()
        if is_first():
            time.sleep(1)  # JAX aborts the others when the first is gone, and they may have to say the same
        os._exit(code)
    sys.exit(code)


def _client() -> Any:
    """JAX's key-value store and barriers: not public, but the one way to speak that is no collective; as in peers."""
    from jax._src.distributed import global_state

    return global_state.client


def _has_joined() -> bool:
    joined = getattr(sys.modules.get("jax"), "distributed", None)  # None also while JAX is being imported
    return joined is not None and joined.is_initialized()


def _counts() -> dict[str, int]:
    given = {field: os.environ[name] for field, name in _COUNTS.items() if name in os.environ}
    for field, value in given.items():
        if not value.isdecimal():
            raise ValueError(f"{_COUNTS[field]}={value!r} is not possible: write a whole number.")
    counts = {field: int(value) for field, value in given.items()}
    total, own = counts.get("num_processes"), counts.get("process_id")
    if total is not None and own is not None and own >= total:
        raise ValueError(
            f"JAX_PROCESS_ID={own} is not possible: of JAX_NUM_PROCESSES={total} they are 0 to {total - 1}."
        )
    return counts


def _is_alone() -> bool:
    """Whether a launcher that JAX would ask has started but this process."""
    if "1" in (os.environ.get("SLURM_NTASKS"), os.environ.get("OMPI_COMM_WORLD_SIZE")):
        return True
    # A pod of Kubernetes that is neither of an indexed job nor of a TPU slice has nobody to look for.
    of_a_job = {"JOB_COMPLETION_INDEX", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"}
    return "KUBERNETES_SERVICE_HOST" in os.environ and not of_a_job & os.environ.keys()


def _all_gpus_of_node() -> list[int] | None:
    """Every GPU of a node whose only Slurm task this is, where JAX would take one for each task; else JAX decides."""
    one_a_node = re.fullmatch(r"1(\(x\d+\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    count = os.environ.get("SLURM_GPUS_ON_NODE", "")
    is_open = one_a_node and count.isdecimal() and "JAX_LOCAL_DEVICE_IDS" not in os.environ
    return list(range(int(count))) if is_open else None


def _give_up(who: str, total: int | None, address: str | None, timeout: int) -> None:
    """Say what is missing and end the process, which waits in a call that nothing interrupts."""
    print(
        f"error: {who} did not meet the others at {address or 'the address that JAX found'} within {timeout} s: "
        f"start all {f'{total} ' if total else ''}processes, and check that this host reaches that address and that "
        "its port is free; --nodistributed runs one process alone.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)
