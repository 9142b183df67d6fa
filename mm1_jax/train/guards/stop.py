"""Stop signals: a signal to one process stops all processes after the same step.

A process that receives SIGTERM or SIGINT tells the others through the coordinator in process 0.
Every process then announces how many stopping points of the loop it has passed, and all stop at the
point after the furthest one. All processes pass the same points in the same order, so they stop
after the same step, and none waits on the devices for a peer that has stopped.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from mm1_jax.multihost import distributed

# Polling interval for signals of other processes; it delays a stop by as much.
_POLL_SECONDS = 0.5


class Interrupted(BaseException):
    """Raised when a signal arrives inside of `StopSignals.interrupting`."""


class StopSignals:
    """Records the first SIGTERM or SIGINT inside the context; later ones act as outside of it."""

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._interrupts = False
        self._previous: dict[signal.Signals, Any] = {}
        self._agreement = _Agreement() if distributed.process_count() > 1 else None

    def __enter__(self) -> "StopSignals":
        # Python allows signal handlers only in the main thread.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._receive)
        if self._agreement is not None:
            self._agreement.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._restore_handlers()
        if self._agreement is not None:
            self._agreement.end()

    def agreed_signal(self) -> signal.Signals | None:
        """Returns the signal to stop for at this point of the loop; every process must call it."""
        if self._agreement is None:
            return self._received
        return self._agreement.pass_point(self._received)

    @property
    def received(self) -> signal.Signals | None:
        """Signal that this process itself has received; others may not know of it yet."""
        return self._received

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Makes a signal raise `Interrupted` at once inside the block, if there is one process."""
        self._interrupts = self._agreement is None
        try:
            yield
        finally:
            self._interrupts = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        self._restore_handlers()
        if self._interrupts:
            self._interrupts = False
            raise Interrupted

    def _restore_handlers(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class _Agreement:
    """Agreement of all processes on the point to stop at, found in a background thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._passed = 0
        self._last: int | None = None
        self._signal: signal.Signals | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stop", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._ended.set()

    def pass_point(self, received: signal.Signals | None) -> signal.Signals | None:
        if received is not None and self._signal is None:
            distributed.set_once("stop/signal", int(received))
        # The background thread holds the lock while processes compare their points, so that this
        # process does not advance meanwhile.
        with self._lock:
            self._passed += 1
            if self._last is not None and self._passed >= self._last:
                return self._signal
            return None

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            number = distributed.get_if_set("stop/signal")
            if number is None:
                continue
            with self._lock:
                self._signal = signal.Signals(number)
                distributed.set_once(f"stop/passed/{distributed.process_index()}", self._passed)
                self._last = 1 + max(
                    distributed.wait_for(f"stop/passed/{process}", process)
                    for process in range(distributed.process_count())
                )
            return
