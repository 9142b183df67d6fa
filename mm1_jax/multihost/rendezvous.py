"""Lets the processes of a run wait for each other before any of them starts JAX.

JAX aborts a process that cannot reach the others, with a stack dump and without their names. Here
process 0 listens on the port that JAX's service will use afterwards. Each other process sends its
index, and is told that all have arrived or, after a timeout, which are missing. A process that
cannot run (because its config is wrong, for example) says so, and the others do not wait for it.
"""

import contextlib
import selectors
import socket
import time
from collections.abc import Iterator

from mm1_jax.multihost.cluster import Cluster

_GREETING = "mm1_jax"
_READY = "ready"
_RETRY_SECONDS = 0.5
_LONGEST_LINE = 1 << 16
# How long a process that cannot run stays to tell the others, which may start later.
DECLINE_SECONDS = 30
# Short enough to be sent in one piece.
_LONGEST_REASON = 1000


class Unreachable(ValueError):
    """Processes of the run did not arrive in time, or reported that they cannot run."""


def meet(cluster: Cluster, timeout: float | int) -> None:
    """Waits until all processes of the cluster have arrived.

    Raises:
        Unreachable: Some did not arrive within `timeout` seconds; the message names them.
    """
    if cluster.process_id == 0:
        _Host(cluster).serve(time.monotonic() + timeout, timeout)
    else:
        _join(cluster, time.monotonic() + timeout, timeout)


def decline(cluster: Cluster, reason: str, timeout: float | int = DECLINE_SECONDS) -> None:
    """Tells the others, for at most `timeout` seconds, why this process cannot run."""
    reason = " ".join(reason.split())[:_LONGEST_REASON] or "an error"
    deadline = time.monotonic() + timeout
    with contextlib.suppress(Unreachable):
        if cluster.process_id == 0:
            _Host(cluster, failure=(0, reason)).serve(deadline, timeout)
        else:
            _join(cluster, deadline, timeout, failure=reason)


class _Host:
    """The side of process 0, which notes the processes that arrive."""

    def __init__(self, cluster: Cluster, failure: tuple[int, str] | None = None):
        """`failure` is the index of a process that cannot run, and the reason."""
        self._cluster = cluster
        self._guests: dict[int, socket.socket] = {}
        self._failure = failure

    def serve(self, deadline: float, timeout: float | int) -> None:
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(self._listen())
            selector = stack.enter_context(selectors.DefaultSelector())
            selector.register(listener, selectors.EVENT_READ)
            self._deadline = deadline
            while self._missing and time.monotonic() < self._deadline:
                for key, _ in selector.select(min(_RETRY_SECONDS, deadline - time.monotonic())):
                    if key.fileobj is listener:
                        guest = stack.enter_context(listener.accept()[0])
                        guest.setblocking(False)
                        selector.register(guest, selectors.EVENT_READ)
                    else:
                        assert isinstance(key.fileobj, socket.socket)
                        self._receive(key.fileobj, selector)
            missing = self._missing
            if self._failure is not None:
                self._answer("failed {} {}".format(*self._failure))
            else:
                self._answer(f"missing {' '.join(map(str, missing))}" if missing else _READY)
        if self._failure is not None:
            raise Unreachable(_who_failed(*self._failure))
        if missing:
            raise Unreachable(_who_is_missing(self._cluster, missing, timeout))

    @property
    def _missing(self) -> list[int]:
        return [i for i in range(1, self._cluster.num_processes) if i not in self._guests]

    def _listen(self) -> socket.socket:
        port, host = self._cluster.port, self._cluster.bind_host
        try:
            if host is not None:
                return socket.create_server((host, port), backlog=1024)
            # Listens on all interfaces, as JAX's service does.
            if socket.has_dualstack_ipv6():
                return socket.create_server(
                    ("", port), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True
                )
            return socket.create_server(("", port), backlog=1024)
        except OSError as error:
            raise Unreachable(
                f"process 0 cannot listen at port {port} ({error.strerror}): another process does, "
                "perhaps of a launch that has not ended; stop it, or choose another "
                "--coordinator_address"
            ) from error

    def _receive(self, guest: socket.socket, selector: selectors.BaseSelector) -> None:
        try:
            words = guest.recv(_LONGEST_LINE).decode().split()
        except (OSError, UnicodeDecodeError):
            words = []
        valid = len(words) >= 3 and words[0] == _GREETING and all(w.isdigit() for w in words[1:3])
        if not valid:
            # The peer has gone or is no process of ours; a process that has gone will try again.
            self._guests = {i: sock for i, sock in self._guests.items() if sock is not guest}
            selector.unregister(guest)
            guest.close()
            return
        process, number = int(words[1]), int(words[2])
        if number != self._cluster.num_processes:
            self._answer(f"differs {number} {self._cluster.num_processes}", {process: guest})
            return
        self._guests[process] = guest
        if len(words) > 3:
            self._failure = (process, " ".join(words[3:]))
            # Leaves time for others that are about to arrive.
            self._deadline = min(self._deadline, time.monotonic() + DECLINE_SECONDS)

    def _answer(self, line: str, guests: dict[int, socket.socket] | None = None) -> None:
        for guest in (self._guests if guests is None else guests).values():
            with contextlib.suppress(OSError):
                guest.sendall(f"{line}\n".encode())
                # The peer closes first, so that TIME_WAIT blocks its port and not ours.
                guest.settimeout(1)
                while guest.recv(1024):
                    pass


def _join(
    cluster: Cluster, deadline: float, timeout: float | int, failure: str | None = None
) -> None:
    """The side of other processes, which send index or failure until process 0 answers."""
    host, _, port = cluster.coordinator_address.rpartition(":")
    problem = "no answer"
    while time.monotonic() < deadline:
        try:
            reply = _exchange((host.strip("[]"), int(port)), cluster, deadline, failure)
        except OSError as error:
            problem = error.strerror or str(error)
            reply = ""
        match reply.split():
            case [word] if word == _READY:
                return
            case ["missing", *numbers]:
                raise Unreachable(_who_is_missing(cluster, [int(i) for i in numbers], timeout))
            case ["failed", number, *words]:
                raise Unreachable(_who_failed(int(number), " ".join(words)))
            case ["differs", own, other]:
                raise Unreachable(
                    f"process {cluster.process_id} was told that there are {own} processes, and "
                    f"process 0 that there are {other} (--num_processes); give all of them the same"
                )
        time.sleep(max(0, min(_RETRY_SECONDS, deadline - time.monotonic())))
    raise Unreachable(
        f"process {cluster.process_id} cannot reach process 0 at {cluster.coordinator_address} "
        f"(from {cluster.source}) within {timeout:g} s: {problem}. Check that process 0 has "
        "started, that this is its address, and that no firewall blocks the port"
    )


def _exchange(
    address: tuple[str, int], cluster: Cluster, deadline: float, failure: str | None
) -> str:
    with socket.create_connection(address, timeout=max(0.1, deadline - time.monotonic())) as peer:
        greeting = f"{_GREETING} {cluster.process_id} {cluster.num_processes} {failure or ''}"
        peer.sendall(f"{greeting.strip()}\n".encode())
        # Process 0 waits as long as this process, and needs time to answer after that.
        peer.settimeout(max(0.1, deadline - time.monotonic() + 2))
        return "".join(_text(peer)).strip()


def _text(peer: socket.socket) -> Iterator[str]:
    while True:
        data = peer.recv(_LONGEST_LINE)
        yield data.decode(errors="replace")
        if not data or data.endswith(b"\n"):
            return


def _who_failed(process: int, reason: str) -> str:
    return f"process {process} cannot run: {reason}"


def _who_is_missing(cluster: Cluster, missing: list[int], timeout: float | int) -> str:
    noun, verb = ("process", "was") if len(missing) == 1 else ("processes", "were")
    return (
        f"{noun} {', '.join(map(str, missing))} of {cluster.num_processes} {verb} not there within "
        f"{timeout:g} s of the start of process 0 at {cluster.coordinator_address} (from "
        f"{cluster.source}). Check that {noun} {verb} started, and can reach that address"
    )
