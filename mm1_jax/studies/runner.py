"""Runs the cells of a study as local processes, each on cores of its own.

    RUNS/STUDY/ARM/SEED          run folder of a cell, with SEED.log and SEED.lock beside it
    RUNS/stages/STAGE/SEED       run folder of a stage, which studies share; a run that is put there
                                 is used

A launch into a folder resumes its run, so the same command continues a study that was stopped. A
cell with a row in the results is done; one whose lock is held runs elsewhere.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm1_jax.storage import write_whole
from mm1_jax.studies.cell_lock import CellLock
from mm1_jax.studies.results import Results, Row, code_state
from mm1_jax.studies.study import Arm, Cell, Run, Stage, Study, module_of

LAUNCH = (sys.executable, "-m", "mm1_jax.launch")
# A launch that is asked to stop saves its state first.
_STOP_SECONDS = 120.0
_POLL_SECONDS = 0.2
_WAIT_SECONDS = 2.0
_LOG_LINES = 8


class RunFailed(Exception):
    """A launch failed; the message has the end of its log."""


class Stopping(Exception):
    """The study is being stopped."""


@dataclass
class Outcome:
    """Cells that ended: done now, run elsewhere, or failed with a reason."""

    done: list[Cell]
    elsewhere: list[str]
    failed: list[str]


class Runner:
    """Runs cells of a study."""

    def __init__(
        self,
        study: Study,
        results: Results,
        folder: Path,
        *,
        jobs: int = 1,
        say: Callable[[str], None] = print,
    ):
        """Sets up a runner.

        Args:
            folder: Folder of all runs.
            jobs: Number of launches at a time; each gets an equal part of the cores.
        """
        self._study, self._results, self._folder, self._say = study, results, folder, say
        self._cores = core_groups(jobs)
        self._modules = {run.name: module_of(study, run) for run in (*study.stages, *study.arms)}
        self._stopping = threading.Event()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._guard = threading.Condition()
        self._busy: set[Path] = set()

    def folder_of(self, run: Run, seed: int) -> Path:
        """Returns the run folder of an arm or a stage."""
        parent = "stages" if isinstance(run, Stage) else self._study.name
        return self._folder / parent / run.name / str(seed)

    def run(self, cells: Sequence[Cell], *, waits: bool = False) -> Outcome:
        """Runs the cells that have no result yet.

        Args:
            waits: Waits for a cell that runs elsewhere, and runs it if that process dies.
        """
        outcome = Outcome([], [], [])
        waiting = [cell for cell in cells if cell not in self._results.read()]
        threads = [
            threading.Thread(target=self._work, args=(waiting, cores, outcome, waits))
            for cores in self._cores[: max(1, len(waiting))]
        ]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(_POLL_SECONDS)
        finally:
            self._stopping.set()
            self._stop_children()
            for thread in threads:
                thread.join()
        return outcome

    def _work(self, waiting: list[Cell], cores: set[int], outcome: Outcome, waits: bool) -> None:
        """Runs cells until none waits."""
        while (cell := self._next(waiting)) is not None:
            try:
                if self._run_cell(cell, cores, waits):
                    outcome.done.append(cell)
                else:
                    holder = self._lock(self._study.arm(cell.arm), cell.seed).holder()
                    outcome.elsewhere.append(f"{cell}: {holder}")
            except Stopping:
                return
            except (RunFailed, ValueError, OSError) as error:
                outcome.failed.append(f"{cell}: {error}")
                self._say(f"{cell}: failed: {error}")
            finally:
                self._leave(cell)

    def _next(self, waiting: list[Cell]) -> Cell | None:
        """Takes the first cell none of whose stages another thread is making; None at the end."""
        with self._guard:
            while waiting and not self._stopping.is_set():
                for cell in waiting:
                    unmade = self._unmade(cell)
                    if not unmade & self._busy:
                        waiting.remove(cell)
                        self._busy |= unmade
                        return cell
                self._guard.wait(_WAIT_SECONDS)
        return None

    def _leave(self, cell: Cell) -> None:
        with self._guard:
            folders = (self.folder_of(s, cell.seed) for s in self._stages(cell))
            self._busy.difference_update(folders)
            self._guard.notify_all()

    def _stages(self, cell: Cell) -> list[Stage]:
        return self._study.stages_of(self._study.arm(cell.arm))

    def _unmade(self, cell: Cell) -> set[Path]:
        folders = {self.folder_of(stage, cell.seed): stage for stage in self._stages(cell)}
        return {folder for folder, stage in folders.items() if not self._is_made(stage, folder)}

    def _run_cell(self, cell: Cell, cores: set[int], waits: bool) -> bool:
        """Runs a cell with its stages; returns False if it runs elsewhere."""
        arm = self._study.arm(cell.arm)
        with self._locked(arm, cell.seed, waits=waits) as lock:
            if lock is None:
                return False
            # Another machine may have finished it in the meantime.
            if cell in self._results.read():
                return True
            for stage in self._stages(cell):
                self._make(stage, cell.seed, cores)
                with self._guard:
                    self._busy.discard(self.folder_of(stage, cell.seed))
                    self._guard.notify_all()
            folder = self.folder_of(arm, cell.seed)
            self._say(f"{cell}: started, log {_beside(folder, '.log')}")
            seconds = self._launch_run(arm, cell.seed, cores, lock)
            report = json.loads((folder / "report.json").read_text())
            metrics = {metric.name: metric.value(report) for metric in self._study.metrics}
            self._results.append(Row(cell, metrics, seconds / 60, code_state()))
            shown = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
            self._say(f"{cell}: done in {seconds / 60:.1f} min: {shown}")
        return True

    def _make(self, stage: Stage, seed: int, cores: set[int]) -> None:
        """Makes a stage, or waits for the process that makes it."""
        folder = self.folder_of(stage, seed)
        with self._locked(stage, seed, waits=True) as lock:
            assert lock is not None, "waits"
            if self._is_made(stage, folder):
                return
            self._say(f"stage {stage.name}, seed {seed}: started, log {_beside(folder, '.log')}")
            seconds = self._launch_run(stage, seed, cores, lock)
            self._say(f"stage {stage.name}, seed {seed}: done in {seconds / 60:.1f} min")

    def _is_made(self, stage: Stage, folder: Path) -> bool:
        note = _read_note(folder)
        return bool(note.get("ended")) and note.get("design") == self._study.digest(stage)

    def _lock(self, run: Run, seed: int) -> CellLock:
        return CellLock(_beside(self.folder_of(run, seed), ".lock"))

    @contextlib.contextmanager
    def _locked(self, run: Run, seed: int, *, waits: bool) -> Iterator[CellLock | None]:
        lock = self._lock(run, seed)
        has_said = False
        while not lock.acquire():
            if not waits:
                yield None
                return
            if not has_said:
                self._say(f"{run.name}, seed {seed}: waiting for {lock.holder()}")
                has_said = True
            if self._stopping.wait(_WAIT_SECONDS):
                raise Stopping
        try:
            yield lock
        finally:
            lock.release()

    def _launch_run(self, run: Arm | Stage, seed: int, cores: set[int], lock: CellLock) -> float:
        """Launches a run and waits for its end; returns the seconds of all its launches."""
        folder = self.folder_of(run, seed)
        note = _read_note(folder)
        before, start = float(note.get("seconds", 0.0)), time.monotonic()
        with _beside(folder, ".log").open("ab") as log:
            child = subprocess.Popen(
                self.command(run, seed),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A signal to this process is passed on once, and not by the terminal as well.
                start_new_session=True,
            )
            self._children.add(child)
            try:
                _pin(child.pid, cores)
                lock.set_child(child.pid)
                if self._stopping.is_set():
                    _signal(child, signal.SIGTERM)
                status = child.wait()
            finally:
                self._children.discard(child)
                seconds = before + time.monotonic() - start
                note = {"design": self._study.digest(run), "seconds": seconds}
                write_whole(_beside(folder, ".json"), json.dumps(note | {"ended": False}))
        if self._stopping.is_set():
            raise Stopping
        if status != 0:
            text = _beside(folder, ".log").read_text(errors="replace")
            last = "\n".join(text.splitlines()[-_LOG_LINES:])
            raise RunFailed(f"the launch ended with status {status}; its log ends with\n{last}")
        write_whole(_beside(folder, ".json"), json.dumps(note | {"ended": True}))
        return seconds

    def command(self, run: Run, seed: int) -> list[str]:
        """Returns the command that launches a run."""
        stages = {x.name: self.folder_of(x, seed).absolute() for x in self._study.stages}
        module = self._modules[run.name]
        return [
            *LAUNCH,
            *([] if module is None else [f"--module={module}"]),
            f"--config={run.config}",
            f"--output_dir={self.folder_of(run, seed)}",
            *(f"--config.{path}={x}" for path, x in run.overrides_of(seed, stages).items()),
        ]

    def _stop_children(self) -> None:
        """Asks all launches to save and stop, and kills those that do not."""
        for child in list(self._children):
            _signal(child, signal.SIGTERM)
        end = time.monotonic() + _STOP_SECONDS
        while self._children and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        for child in list(self._children):
            _signal(child, signal.SIGKILL)


def core_groups(jobs: int) -> list[set[int]]:
    """Splits the cores of this process into equal groups; with more jobs than cores, they share."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))
    if jobs >= len(cores):
        return [{cores[job % len(cores)]} for job in range(jobs)]
    ends = [len(cores) * job // jobs for job in range(jobs + 1)]
    return [set(cores[a:b]) for a, b in zip(ends, ends[1:], strict=False)]


def _pin(pid: int, cores: set[int]) -> None:
    # Threads that the process starts later, such as those of XLA, inherit the cores.
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(pid, cores)


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(OSError):
        os.killpg(child.pid, number)


def _beside(folder: Path, suffix: str) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder.with_name(folder.name + suffix)


def _read_note(folder: Path) -> dict[str, Any]:
    """Returns the note of a run's launches: seconds so far, and whether it ended."""
    try:
        return json.loads(folder.with_name(folder.name + ".json").read_text())
    except (OSError, ValueError):
        return {}
