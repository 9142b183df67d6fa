"""Starts a launch again that has died: killed, out of memory, lost a peer, hung.

It is a process without jax beside the launch, one on each host, that passes signals on. What a
person has to mend, and what is done, it leaves.
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
    """Runs `command` until it ends for good, at most `max_restarts` times more; its exit status.

    After a SIGTERM or SIGINT, which it passes on, nothing is started again: the run may not have
    come to where it says by its status that it was stopped.
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
    """Passes SIGTERM and SIGINT on to the process that runs, inside the context."""

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
        """The status of the command, negative where a signal ended it."""
        self._process = subprocess.Popen(command)
        if self.came:
            # It came while the process was being started.
            self._process.send_signal(self._number)
        return self._process.wait()

    def pause(self, seconds: float) -> bool:
        """Whether a signal came within so many seconds."""
        # A lock that the handler would take may be held when it is called, so there is none.
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
