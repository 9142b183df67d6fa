"""Goodput: the time of a run per phase, over all launches, in `goodput.json`.

    start_up    from process start to the first step: reading lengths, restoring
    compile     compilation of the train step
    data_wait   waiting for batches
    step        the rest of the loop: useful training time
    checkpoint  time that saves block the loop; the rest of a save overlaps with steps
    evaluation, report

Goodput is the share of the time since the first launch that was spent in steps that were kept.
Lost time is that of steps which a later launch had to repeat, and the time between the last record
of a launch and the start of the next. Durations within a launch use a monotonic clock. A launch is
never recorded as starting before the end of the previous one, even if the system clock says so.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging

from mm1_jax.storage import write_whole

PHASES = ("start_up", "compile", "data_wait", "step", "checkpoint", "evaluation", "report")
_NAME = "goodput.json"
# Number of latest saves for which the step seconds up to the save are recorded.
_NUM_SAVES = 32


class Goodput:
    """Clock of one launch, which assigns every moment to one phase."""

    def __init__(self, directory: Path | None):
        """Continues the records of earlier launches in `directory`; None disables writing."""
        self._path = None if directory is None else directory / _NAME
        self._earlier = _read(self._path)
        self._lock = threading.RLock()
        age = _process_age()
        ends = [launch["end"] for launch in self._earlier]
        self._start = max([time.time() - age, *ends])
        # Value of `time.monotonic` at `_start`, the start of the process.
        self._monotonic_start = time.monotonic() - age
        self._seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._saved: dict[str, float] = {}
        self._first_step = self._last_step = 0
        self._lost = 0.0
        self._phase = "start_up"
        self._since = self._monotonic_start

    @property
    def phase(self) -> tuple[str, float]:
        """Current phase, and its duration so far in seconds."""
        with self._lock:
            return self._phase, time.monotonic() - self._since

    @contextlib.contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Assigns the time of the block to `phase`; the previous phase resumes afterward."""
        before = self._phase
        self._enter(phase)
        try:
            yield
        finally:
            self._enter(before)

    def begin(self, first_step: int) -> None:
        """Starts the loop after `first_step`; later steps of earlier launches count as lost."""
        with self._lock:
            self._first_step = self._last_step = first_step
            for launch in self._earlier:
                made = launch["seconds"]["step"]
                if launch["first_step"] >= first_step:
                    launch["lost_step_seconds"] = made
                elif launch["last_step"] > first_step:
                    at_save = launch["saved"].get(str(first_step), made)
                    launch["lost_step_seconds"] = made - at_save
        self._enter("step")

    def step(self, step: int) -> None:
        """Records that step number `step` has been dispatched."""
        with self._lock:
            self._last_step = step

    def saved(self, step: int) -> None:
        """Records that a save after `step` has started."""
        with self._lock:
            self._enter(self._phase)
            self._saved[str(step)] = self._seconds["step"]
            self._saved = dict(list(self._saved.items())[-_NUM_SAVES:])
        self.write()

    def rolled_back(self, step: int) -> None:
        """Resumes from the checkpoint after `step`; steps of this launch since then are lost."""
        with self._lock:
            self._enter(self._phase)
            self._lost += self._seconds["step"] - self._lost - self._saved.get(str(step), 0.0)
            self._last_step = step

    def totals(self) -> dict[str, float]:
        """Returns seconds per phase over all launches, and the goodput."""
        launches = [*self._earlier, self._launch()]
        seconds = {name: sum(each["seconds"][name] for each in launches) for name in PHASES}
        lost = sum(each["lost_step_seconds"] for each in launches)
        ends = zip(launches, launches[1:], strict=False)
        down = sum(max(0.0, after["start"] - before["end"]) for before, after in ends)
        elapsed = max(sum(seconds.values()) + down, 1e-9)
        kept = seconds["step"] - lost
        return {
            **{f"{name}_seconds": value for name, value in seconds.items()},
            "step_seconds": kept,
            "lost_step_seconds": lost,
            "down_seconds": down,
            "elapsed_seconds": elapsed,
            "launches": len(launches),
            "goodput": kept / elapsed,
        }

    def describe(self) -> str:
        """Formats the totals as a readable line."""
        totals = self.totals()
        shares = ", ".join(
            f"{name.removesuffix('_seconds')} {totals[name] / totals['elapsed_seconds']:.1%}"
            for name in (*(f"{phase}_seconds" for phase in PHASES), *_LOST_FIELDS)
            if totals[name] > 0
        )
        return (
            f"goodput {totals['goodput']:.1%} of {totals['elapsed_seconds']:,.0f} s in "
            f"{totals['launches']} launches: {shares}"
        )

    def write(self) -> None:
        if self._path is None:
            return
        with self._lock:
            content = {"totals": self.totals(), "launches": [*self._earlier, self._launch()]}
            # A full disk must not stop the run.
            with contextlib.suppress(OSError):
                write_whole(self._path, json.dumps(content, indent=1) + "\n")

    def _enter(self, phase: str) -> None:
        with self._lock:
            now = time.monotonic()
            self._seconds[self._phase] += now - self._since
            self._phase, self._since = phase, now

    def _launch(self) -> dict[str, Any]:
        with self._lock:
            now = time.monotonic()
            seconds = dict(self._seconds)
            seconds[self._phase] += now - self._since
            return {
                "start": self._start,
                "end": self._start + now - self._monotonic_start,
                "first_step": self._first_step,
                "last_step": self._last_step,
                "seconds": seconds,
                "saved": self._saved,
                "lost_step_seconds": self._lost,
            }


_LOST_FIELDS = ("lost_step_seconds", "down_seconds")


def _read(path: Path | None) -> list[dict[str, Any]]:
    if path is None or not path.exists():
        return []
    try:
        launches = json.loads(path.read_text())["launches"]
        for launch in launches:
            times = [launch[name] for name in ("start", "end", "lost_step_seconds")]
            sum([*times, *(launch["seconds"][phase] for phase in PHASES)])
            max(launch["first_step"], launch["last_step"], *dict(launch["saved"]).values(), 0)
        return list(launches)
    except (OSError, ValueError, LookupError, TypeError) as error:
        aside = path.with_name(f"{_NAME}.damaged")
        with contextlib.suppress(OSError):
            path.replace(aside)
        logging.warning(
            "%s: damaged (%s %s); renamed to %s, and goodput is counted from now on",
            path,
            type(error).__name__,
            error,
            aside.name,
        )
        return []


def _process_age() -> float:
    """Returns the seconds since process start, including imports; 0 if /proc is unavailable."""
    try:
        # Parse after the process name, which may contain anything. The start time is in clock ticks
        # since boot.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        up = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, up - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0
