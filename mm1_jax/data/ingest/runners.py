"""Runs a job for many units, here or in processes that may be stopped or killed at any moment."""

import contextlib
import importlib
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from mm1_jax.data.readers.source_files import Unit

# Longest time between the parent's checks of the progress of its workers.
_POLL_SECONDS = 0.5


class Stopped(Exception):
    """Ends the job of a worker when the parent stops early."""


class Tally:
    """Counts of what has been read, shared by all processes.

    Args:
        counts: Four numbers in shared memory, if several processes count.
        lock: The lock of `counts`.
        check: Called regularly; stops the job by raising an exception.
    """

    # Entries are accumulated in the process first, as the lock is shared.
    _EVERY = 32

    def __init__(
        self,
        counts: Any = None,
        lock: Any = None,
        check: Callable[["Tally"], None] = lambda _: None,
    ):
        self._counts = [0] * 4 if counts is None else counts
        self._lock = lock or contextlib.nullcontext()
        self._check = check
        self._new_entries = 0

    def entry(self) -> None:
        """Counts an entry that was read."""
        self._new_entries += 1
        if self._new_entries == self._EVERY:
            self._add(0)

    def part(self, num_entries: int, num_rejected: int) -> None:
        """Counts a part that was written, with its entries and its rejected entries."""
        self._add(0, num_entries, num_rejected)

    def unit(self) -> None:
        """Counts a finished unit."""
        self._add(1)

    def _add(self, units: int, covered: int = 0, rejected: int = 0) -> None:
        with self._lock:
            for index, more in enumerate((self._new_entries, units, covered, rejected)):
                self._counts[index] += more
        self._new_entries = 0
        self._check(self)

    @property
    def entries(self) -> int:
        return self._counts[0]

    @property
    def units(self) -> int:
        return self._counts[1]

    @property
    def parts(self) -> tuple[int, int]:
        """The number of entries of all parts, and the number of rejected ones among them."""
        # Without the lock, which a killed worker may hold. Reading in this order, the entries are
        # never fewer than the rejected ones.
        rejected = self._counts[3]
        return self._counts[2], rejected


# Units with their numbers, which name their files.
NumberedUnits = Sequence[tuple[int, Unit]]
# `job(number, unit, tally)` does all of a unit, or what is left of it; without a tally, nothing is
# counted. Pickled into workers.
Job = Callable[..., None]
# Called regularly with the counts; stops the work by raising an exception.
Watch = Callable[[Tally], None]
# Runs a job for all units, in any order.
Runner = Callable[[Job, NumberedUnits, Watch], None]


def in_this_process(job: Job, units: NumberedUnits, watch: Watch) -> None:
    tally = Tally(check=watch)
    for number, unit in units:
        job(number, unit, tally)


@dataclass(frozen=True)
class Workers:
    """Runs jobs in `num_workers` processes."""

    num_workers: int

    def __call__(self, job: Job, units: NumberedUnits, watch: Watch) -> None:
        num_workers = min(self.num_workers, len(units))
        if num_workers < 2:
            in_this_process(job, units, watch)
            return
        context = multiprocessing.get_context("spawn")
        counts, lock, stop = context.RawArray("Q", 4), context.Lock(), context.Event()
        tally = Tally(counts)
        ended: queue.SimpleQueue[Future[None]] = queue.SimpleQueue()
        with ProcessPoolExecutor(
            num_workers, context, initializer=_start_worker, initargs=(job, counts, lock, stop)
        ) as executor:
            try:
                for number, unit in units:
                    executor.submit(_run_in_worker, number, unit).add_done_callback(ended.put)
                num_left = len(units)
                while num_left:
                    with contextlib.suppress(queue.Empty):
                        ended.get(timeout=_POLL_SECONDS).result()
                        num_left -= 1
                    watch(tally)
            except BaseException as error:
                stop.set()
                executor.shutdown(cancel_futures=True)
                if isinstance(error, BrokenProcessPool):
                    raise ValueError(
                        "a worker process was killed, by the system if memory ran out. "
                        "The same command resumes; give it fewer workers."
                    ) from error
                raise


# The job and the tally of a worker process.
_worker: tuple[Job, Tally] | None = None


def _start_worker(job: Job, counts: Any, lock: Any, stop: Any) -> None:
    global _worker
    # Ctrl-C reaches all processes of a terminal; the parent stops its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def check(_: Tally) -> None:
        if stop.is_set():
            raise Stopped

    _worker = job, Tally(counts, lock, check)


def _end_with_parent() -> None:
    """Exits with the parent: an orphaned worker would wait forever, and disturb a later run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_in_worker(number: int, unit: Unit) -> None:
    assert _worker is not None
    job, tally = _worker
    job(number, unit, tally)


def beam_runner(arguments: Sequence[str]) -> Runner:
    """Returns a runner on Apache Beam, whose workers must see the input and output files."""
    try:
        beam = importlib.import_module("apache_beam")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--runner=beam needs Apache Beam ({error}): pip install 'mm1_jax[beam]'"
        ) from error

    def run(job: Job, units: NumberedUnits, watch: Watch) -> None:
        with beam.Pipeline(argv=list(arguments)) as pipeline:
            work = pipeline | beam.Create(units) | beam.Reshuffle()
            _ = work | beam.MapTuple(job)
        watch(Tally())

    return run
