"""Barrier that synchronizes processes while a checkpoint is written, and detects failed saves.

A process that fails to write never reaches Orbax's own barriers. The others wait there until the
timeout, minutes later, and are out of step with it from then on. Here, every process announces the
barrier it has reached. If they differ, the save has failed, and all processes are told at once.
"""

import itertools
import threading

from mm1_jax.multihost import distributed


class OutOfStep(RuntimeError):
    """Raised in a process when another one could not write its part."""


class CommitBarrier:
    """The `barrier_sync_fn` of an Orbax checkpoint manager."""

    def __init__(self, name: str):
        """`name` must be the same in all processes and unique per manager."""
        self._name = name
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._is_broken = False

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        with self._lock:
            if self._is_broken:
                raise OutOfStep(f"a save has failed before {key}")
            place, patience = f"{self._name}/{next(self._numbers)}", timeout_ms / 1000
            processes = range(distributed.process_count())
            if distributed.is_first():
                keys = [
                    key,
                    *(distributed.wait_for(f"{place}/{p}", p, patience) for p in processes[1:]),
                ]
                distributed.set_once(f"{place}/all", keys if len(set(keys)) > 1 else [])
            else:
                distributed.set_once(f"{place}/{distributed.process_index()}", key)
            differing = distributed.wait_for(f"{place}/all", 0, patience)
            if differing:
                self._is_broken = True
                raise OutOfStep(f"processes wait at different barriers: {differing}")
