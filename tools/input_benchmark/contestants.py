"""Measures the CPU time of ways to make batches, in this process and in their workers."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# Number of batches whose images the other contestants decode; a turn has a multiple of it.
NUM_RECORDED = 4
# Shortest turn, since the CPU times of processes have a resolution of 0.01 s.
LEAST_SECONDS = 1.0


class Counts(NamedTuple):
    """Numbers of images, and of positions with a token."""

    images: float
    tokens: float


class Measured(NamedTuple):
    """Work done, and the CPU time that it took."""

    images: float
    tokens: float
    seconds: float


class Contestant:
    """A way to make endless batches, and the CPU time that it takes."""

    def __init__(self, make: Callable[[], Iterator[Counts]]):
        before = _descendants()
        self._batches = make()
        # The first batch starts the workers.
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
        """Returns the CPU time so far, once workers have made all batches that they make ahead.

        A turn then makes as many batches as it consumes. They are not the same batches: those made
        ahead in one turn are consumed in the next, so only the sum over turns is right.
        """
        seconds = self._worker_seconds()
        while self._workers:
            time.sleep(0.25)
            before, seconds = seconds, self._worker_seconds()
            # CPU times tick every 0.01 s, and a process that waits for a core gets no ticks.
            if seconds - before <= 0.011 and not self._wants_a_core():
                break
        return seconds + time.process_time()

    def _wants_a_core(self) -> bool:
        """Returns whether any thread of a worker is runnable or waits for the disk."""
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
            # The name of the program, in parentheses, may contain spaces.
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
