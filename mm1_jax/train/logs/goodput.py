"""The time of a run by what it was spent on, over all its launches: `goodput.json`.

    start_up    from the start of the process to the first step: reading lengths, restoring
    compile     of the train step
    data_wait   waiting for batches
    step        all of the loop that is none of the others: what a run is for
    checkpoint  what a save holds up; the rest of it goes on beside the steps
    evaluation, report

Goodput is the share of the time since the first launch began in steps that were kept. Lost are
steps that a later launch had to make again, and the time between the end of a launch, as it last
wrote it down, and the start of the next. Within a launch time is that of a clock that nobody sets;
a launch never starts before the end of the one before, whatever the clock of the machine says.
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
# Of how many saves it is known how long the steps up to them took.
_NUM_SAVES = 32


class Goodput:
    """The clock of one launch; every moment belongs to one phase."""

    def __init__(self, directory: Path | None):
        """Goes on with what earlier launches wrote in `directory`; None: writes nothing."""
        self._path = None if directory is None else directory / _NAME
        self._earlier = _read(self._path)
        self._lock = threading.RLock()
        age = _process_age()
        ends = [launch["end"] for launch in self._earlier]
        self._start = max([time.time() - age, *ends])
        # What `time.monotonic` says at `_start`, the start of the process.
        self._zero = time.monotonic() - age
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._saved: dict[str, float] = {}
        self._first_step = self._last_step = 0
        self._lost = 0.0
        self._phase = "start_up"
        self._since = self._zero

    @property
    def phase(self) -> tuple[str, float]:
        """The current phase, and for how many seconds it has been."""
        with self._lock:
            return self._phase, time.monotonic() - self._since

    @contextlib.contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """The time of the block belongs to `phase`, and then to what went on before again."""
        before = self._phase
        self._enter(phase)
        try:
            yield
        finally:
            self._enter(before)

    def begin(self, first_step: int) -> None:
        """The loop begins after `first_step`; what earlier launches made beyond it is lost."""
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
        """Step number `step` has been dispatched."""
        with self._lock:
            self._last_step = step

    def saved(self, step: int) -> None:
        """A checkpoint after `step` was begun."""
        with self._lock:
            self._enter(self._phase)
            self._saved[str(step)] = self._seconds["step"]
            self._saved = dict(list(self._saved.items())[-_NUM_SAVES:])
        self.write()

    def rolled_back(self, step: int) -> None:
        """Goes on from the checkpoint after `step`: what this launch made since is lost."""
        with self._lock:
            self._enter(self._phase)
            self._lost += self._seconds["step"] - self._lost - self._saved.get(str(step), 0.0)
            self._last_step = step

    def totals(self) -> dict[str, float]:
        """Seconds over all launches, and shares of the time since the first one began."""
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
        """The totals as a line for people."""
        totals = self.totals()
        shares = ", ".join(
            f"{name.removesuffix('_seconds')} {totals[name] / totals['elapsed_seconds']:.1%}"
            for name in (*(f"{phase}_seconds" for phase in PHASES), *_LOSSES)
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
            # A full disk is no reason to stop.
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
                "end": self._start + now - self._zero,
                "first_step": self._first_step,
                "last_step": self._last_step,
                "seconds": seconds,
                "saved": self._saved,
                "lost_step_seconds": self._lost,
            }


_LOSSES = ("lost_step_seconds", "down_seconds")


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
            "%s: damaged (%s %s); put aside as %s, and the clock begins anew",
            path,
            type(error).__name__,
            error,
            aside.name,
        )
        return []


def _process_age() -> float:
    """Seconds since this process was started, imports included; 0 where Linux does not say."""
    try:
        # After the name, which may hold anything; the start is in ticks since the machine's.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        up = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, up - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0
