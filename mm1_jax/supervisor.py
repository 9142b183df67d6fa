"""Starts a launch again that has died: killed, out of memory, lost a peer, hung.

It is a process without jax beside the launch, one on each host, that passes signals on. What a
person has to mend, and what is done, it leaves.
"""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

# Done; an error of the user; an evaluation that failed; stopped by SIGINT or SIGTERM.
FINAL_STATUSES = (0, 2, 3, 130, 143)
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0


def supervise(command: Sequence[str], max_restarts: int) -> int:
    """Runs `command` until it ends for good, at most `max_restarts` times more; its exit status."""
    pause = _FIRST_PAUSE_SECONDS
    for number in range(max_restarts + 1):
        status = _run(command)
        if status in FINAL_STATUSES or number == max_restarts:
            break
        print(
            f"the run ended with {_described(status)}; restart {number + 1} of {max_restarts} in "
            f"{pause:g} s",
            file=sys.stderr,
            flush=True,
        )
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    return status if status >= 0 else 128 - status


def _run(command: Sequence[str]) -> int:
    process = subprocess.Popen(command)

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    previous = {each: signal.signal(each, pass_on) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                return process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _described(status: int) -> str:
    return f"exit code {status}" if status >= 0 else signal.Signals(-status).name
