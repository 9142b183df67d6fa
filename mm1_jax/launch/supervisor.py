"""Restarts a launch that died: killed, out of memory, without a peer, or hung.

The supervisor is a process without jax, one per host, that forwards signals to the launch. It does
not restart a run that is done, nor one that fails with an error that the user has to fix.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

# Done; an error of the user; an evaluation that failed; stopped by SIGINT or SIGTERM.
FINAL_STATUSES = (0, 2, 3, 130, 143)
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_LOOK_SECONDS = 0.1


def supervise(command: Sequence[str], max_restarts: int) -> int:
    """Runs `command`, restarts it at most `max_restarts` times, and returns its exit status.

    After a SIGTERM or SIGINT, it does not restart, whatever the exit status: the signal may reach
    the run before it can report by its status that it was stopped.
    """
    with _Signals() as signals:
        pause = _FIRST_PAUSE_SECONDS
        for number in range(max_restarts + 1):
            status = signals.run(command)
            is_final = status in FINAL_STATUSES or signals.came
            if is_final or number == max_restarts:
                break
            print(
                f"the run ended with {_described(status)}; restart {number + 1} of {max_restarts} "
                f"in {pause:g} s",
                file=sys.stderr,
                flush=True,
            )
            if signals.pause(pause):
                break
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    return status if status >= 0 else 128 - status


class _Signals:
    """Context that forwards SIGTERM and SIGINT to the running process."""

    def __init__(self) -> None:
        self.came = False
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0

    def __enter__(self) -> "_Signals":
        numbers = (signal.SIGTERM, signal.SIGINT)
        self._previous = {each: signal.signal(each, self._note) for each in numbers}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def run(self, command: Sequence[str]) -> int:
        """Runs the command and returns its status, negative if a signal ended it."""
        self._process = subprocess.Popen(command)
        if self.came:
            # The signal came while the process was being started.
            self._process.send_signal(self._number)
        return self._process.wait()

    def pause(self, seconds: float) -> bool:
        """Waits, and returns whether a signal came."""
        # No lock: the handler would deadlock if it interrupts the holder of the lock.
        end = time.monotonic() + seconds
        while not self.came and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK_SECONDS))
        return self.came

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        self.came = True
        if self._process is not None:
            self._process.send_signal(number)


def _described(status: int) -> str:
    return f"exit code {status}" if status >= 0 else signal.Signals(-status).name
