"""The CPU time that ways to make batches take, of this process and of the workers they start."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# The pictures of so many batches are what the others decode, and a turn is as many, or a multiple.
NUM_RECORDED = 4
# A turn of less is short beside the hundredths of a second in which processes are timed.
LEAST_SECONDS = 1.0


class Counts(NamedTuple):
    """Pictures, and positions with a token."""

    images: float
    tokens: float


class Measured(NamedTuple):
    """The work that was done in some CPU time."""

    images: float
    tokens: float
    seconds: float


class Contestant:
    """A way to make batches without end, and the CPU time that a batch takes it."""

    def __init__(self, make: Callable[[], Iterator[Counts]]):
        before = _descendants()
        self._batches = make()
        # Workers are started by the first.
        next(self._batches)
        self._workers = _descendants() - before

    def turn(self) -> "Measured":
        counts, start = [], self._settled()
        first = time.monotonic()
        while not counts or time.monotonic() - first < LEAST_SECONDS:
            counts += [next(self._batches) for _ in range(NUM_RECORDED)]
        seconds = self._settled() - start
        return Measured(*map(sum, zip(*counts, strict=True)), seconds)

    def _settled(self) -> float:
        """CPU time so far, as of a moment when workers have made all that they make ahead.

        So as many batches are made in a turn as are taken. They are not the same: what a worker
        made ahead in one turn is taken in the next, and only the sum over turns is right.
        """
        seconds = self._worker_seconds()
        while self._workers:
            time.sleep(0.25)
            before, seconds = seconds, self._worker_seconds()
            # The clock of processes ticks in hundredths; and one that waits for a core has no
            # ticks either.
            if seconds - before <= 0.011 and not self._wants_a_core():
                break
        return seconds + time.process_time()

    def _wants_a_core(self) -> bool:
        """Tells if any thread of a worker could go on."""
        tasks = [
            task for worker in self._workers for task in Path(f"/proc/{worker}/task").iterdir()
        ]
        for task in tasks:
            with contextlib.suppress(FileNotFoundError):
                if (task / "stat").read_text().rpartition(")")[2].split()[0] in "RD":
                    return True
        return False

    def _worker_seconds(self) -> float:
        ticks = 0
        for worker in self._workers:
            # The name of the program, in brackets, may hold spaces.
            fields = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def _descendants() -> set[int]:
    found, unseen = set(), [os.getpid()]
    while unseen:
        children = set()
        for path in Path(f"/proc/{unseen.pop()}/task").glob("*/children"):
            children |= {int(pid) for pid in path.read_text().split()}
        unseen += children - found
        found |= children
    return found
