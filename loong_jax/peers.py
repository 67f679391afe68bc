"""Several processes that train as one: whether they are alike when they start, and that none outlives another's death.

Before the work every process says what it is made of, and all compare. While they work, each keeps a connection with
the first: one that breaks off, or is silent for long, ends all of them with exit code 4 and the dead one's name. JAX
would abort them in its own time, after up to two minutes.
"""

import contextlib
import ctypes
import json
import platform
import secrets
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

from loong_jax import distributed
from loong_jax.config import Job
from loong_jax.data.fingerprint import data_fingerprint
from loong_jax.endings import Ended, PeerDied, end_at_once

_KEY = "loong_jax"
_BEAT = 5.0  # seconds between two signs of life
_CONNECTING = 30.0  # seconds
_PATIENCE = 6  # of these that may be missing; counted, not timed, so that a machine that stood still accuses nobody


@contextlib.contextmanager
def together(job: Job, timeout: float = 300.0) -> Iterator[None]:
    """Check that all processes are alike, and watch over each other while the work inside is done.

    Raises:
        ValueError: a process does not answer within ``timeout`` seconds, or is of another make than the first.
    """
    index, count = distributed.place()
    if count == 1:
        yield
        return
    # Not public, but the one way to speak before a collective that would hang where one is missing; orbax uses it too.
    from jax._src.distributed import global_state

    facts = check_alike(global_state.client, index, count, facts_of(job), timeout)
    hosts = [known["host"] for known in facts]
    address = global_state.coordinator_address.rpartition(":")[0].strip("[]")
    watch = Watch(index, hosts, _end)
    _delay_aborts()
    watch.start(global_state.client, address)
    try:
        yield
    except BaseException as error:
        if isinstance(error, RuntimeError):
            time.sleep(_BEAT)  # a collective fails where a peer died: the watch ends this process with the cause
        watch.leave(is_well=isinstance(error, Ended))
        raise
    watch.leave(is_well=True)


def facts_of(job: Job) -> dict[str, Any]:
    """What must be the same in all processes, and the name of the host."""
    import jax

    from loong_jax.training.provenance import describe

    devices, made_of = jax.local_devices(), describe(job)
    return {
        "host": socket.gethostname(),
        "Python": platform.python_version(),
        "jax": version("jax"),
        "jaxlib": version("jaxlib"),
        "the code of loong_jax": made_of["code"]["source"],
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "data": data_fingerprint(job.data) if hasattr(job, "data") else "",
        "config": made_of["config"],
    }


def check_alike(client: Any, index: int, count: int, facts: dict[str, Any], timeout: float) -> list[dict[str, Any]]:
    """The facts of all processes, of which ``client`` (JAX's, of its key-value store) tells each what others said.

    Raises:
        ValueError: a process is missing, or differs from the first.
    """
    client.key_value_set(f"{_KEY}/facts/{index}", json.dumps(facts))
    deadline, found = time.monotonic() + timeout, {}
    for other in range(count):
        left = max(1, round(1000 * (deadline - time.monotonic())))
        with contextlib.suppress(RuntimeError):  # of JAX: the time is over
            found[other] = json.loads(client.blocking_key_value_get(f"{_KEY}/facts/{other}", left))
    missing = [str(other) for other in range(count) if other not in found]
    differing = [line for other in sorted(found) if 0 in found for line in _differences(other, found[other], found[0])]
    if missing or differing:
        client.key_value_set(f"{_KEY}/checked/{index}", "")
        for other in found if index == 0 else ():  # whom JAX aborts when the first process ends
            with contextlib.suppress(RuntimeError):
                client.blocking_key_value_get(f"{_KEY}/checked/{other}", round(1000 * _BEAT))
    if missing:
        there = ", ".join(f"{other} on {known['host']}" for other, known in found.items())
        raise ValueError(
            f"Of {count} processes {', '.join(missing)} did not answer within {timeout:g} s, and there are {there}: "
            "see what the missing ones printed, and start all of them again."
        )
    if differing:
        raise ValueError(f"The processes are not alike: {'; '.join(differing[:5])}: start all of them with the same.")
    return [found[other] for other in range(count)]


def _differences(other: int, its: dict[str, Any], first: dict[str, Any]) -> Iterator[str]:
    from loong_jax.training.provenance import changed_settings

    for what in first:
        if what == "config":
            for line in changed_settings({"config": its[what]}, {"config": first[what]}):
                yield f"in process {other} on {its['host']} {line.replace(', wanted ', ', in process 0 ')}"
        elif what != "host" and its.get(what) != first[what]:
            yield f"{what} of process {other} on {its['host']}: {its.get(what)}, of process 0: {first[what]}"


class Watch:
    """Connections between the first process and all others, over which they tell that they live."""

    def __init__(self, index: int, hosts: list[str], end: Callable[[str], None]):
        """Describe it; ``end`` gets the sentence that says which peer is gone, in a thread."""
        self._index, self._hosts, self._end = index, hosts, end
        self._links: dict[int, socket.socket] = {}
        self._has_left: set[int] = set()
        self._is_over = threading.Event()
        self._lock = threading.Lock()

    def start(self, client: Any, address: str) -> None:
        """Connect with the others; ``address`` is of the first process's host. Where that fails, warn."""
        try:
            self._accept(client) if self._index == 0 else self._connect(client, address)
        except (OSError, RuntimeError) as error:
            reason = error or type(error).__name__
            warnings.warn(
                f"The processes cannot watch each other ({reason}): open the ports between their hosts, as else it may "
                "take JAX two minutes to notice that one died.",
                stacklevel=2,
            )
        threading.Thread(target=self._beat, daemon=True).start()

    def _accept(self, client: Any) -> None:
        secret = secrets.token_bytes(16)
        is_dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if is_dual else socket.AF_INET
        with socket.create_server(("", 0), family=family, dualstack_ipv6=is_dual) as server:
            client.key_value_set(f"{_KEY}/watch", f"{server.getsockname()[1]} {secret.hex()}")
            server.settimeout(_CONNECTING)
            while len(self._links) < len(self._hosts) - 1:
                link, _ = server.accept()
                link.settimeout(_CONNECTING)
                if _received(link, 16) == secret:
                    self._watch(int.from_bytes(_received(link, 4), "big"), link)

    def _connect(self, client: Any, address: str) -> None:
        port, secret = client.blocking_key_value_get(f"{_KEY}/watch", round(1000 * _CONNECTING)).split()
        link = socket.create_connection((address, int(port)), _CONNECTING)
        link.sendall(bytes.fromhex(secret) + self._index.to_bytes(4, "big"))
        self._watch(0, link)

    def leave(self, is_well: bool) -> None:
        """Tell the others that this process ends, and whether they may go on without it."""
        self._is_over.set()
        self._tell(b"b" if is_well else b"e")

    def _watch(self, other: int, link: socket.socket) -> None:
        link.settimeout(_BEAT)
        self._links[other] = link
        threading.Thread(target=self._listen, args=(other, link), daemon=True).start()

    def _beat(self) -> None:
        while not self._is_over.wait(_BEAT / 2):
            self._tell(b".")

    def _tell(self, what: bytes) -> None:
        with self._lock:
            for link in self._links.values():
                with contextlib.suppress(OSError):  # that it is gone, the listener finds
                    link.sendall(what)

    def _listen(self, other: int, link: socket.socket) -> None:
        silent = 0
        while not self._is_over.is_set():
            try:
                said = link.recv(1)
            except TimeoutError:
                silent += 1
                if silent > _PATIENCE:
                    return self._lost(other, f"gave no sign of life for {silent * _BEAT:.0f} s")
                continue
            except OSError:
                said = b""
            silent = 0
            if said == b"b":
                return
            if said == b"e" and self._is_over.wait(_BEAT):  # a mistake that all make alike is told by each
                return
            if said == b"e":
                return self._lost(other, "ended with an error of its own")
            if said == b"d":  # the first process passes on who is gone
                length = int.from_bytes(_received(link, 4), "big")
                return self._end(_received(link, length).decode())
            if said == b"":
                return self._lost(other, "died, or its connection broke")

    def _lost(self, other: int, how: str) -> None:
        if self._is_over.is_set():
            return
        message = f"process {other} on {self._hosts[other]} {how}: the same command, on all hosts, goes on."
        if self._index == 0:
            text = message.encode()
            self._tell(b"d" + len(text).to_bytes(4, "big") + text)
        self._end(message)


def _received(link: socket.socket, count: int) -> bytes:
    content = b""
    while len(content) < count:
        more = link.recv(count - len(content))
        if not more:
            raise ConnectionError("the other side closed the connection")
        content += more
    return content


def _delay_aborts() -> None:
    """Have JAX, which aborts a process whose coordinator is gone, leave the watch six seconds to say the cause."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    # The handler is C's sleep(), called with the signal's number, 6: safe in a handler, which Python's code is not.
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _end(message: str) -> None:
    """End at once: the main thread may be in a collective that nothing interrupts."""
    print(f"{distributed.process_label()}{message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    end_at_once(PeerDied.exit_code)
