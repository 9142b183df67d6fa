"""Watchdog thread that writes the status of this process and reports when it hangs.

    hosts/process_00003.txt   one line, rewritten every few seconds; `cat hosts/*` shows all

A process that hangs writes its step and the stacks of all its threads to stderr. If `abort` is set,
it then exits, so that a supervisor restarts it.
"""

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from mm1_jax.config import Configurable, config_class
from mm1_jax.field_types import Positive
from mm1_jax.multihost import distributed
from mm1_jax.storage import write_whole
from mm1_jax.train.logs.goodput import Goodput


class Watchdog(Configurable):
    """Checks every few seconds whether the loop has made progress."""

    @config_class
    class Config(Configurable.Config):
        # Seconds without progress (a step, a save, the end of an evaluation) before the run counts
        # as hung; None disables it.
        hang_seconds: Positive | None = 1800.0
        abort: bool = False
        status_every_n_seconds: Positive = 10.0

    def __init__(self, cfg: Config, *, output_dir: Path, goodput: Goodput):
        super().__init__(cfg)
        self._path = output_dir / "hosts" / f"process_{distributed.process_index():05}.txt"
        self._goodput = goodput
        self._step = 0
        self._progress = time.monotonic()
        self._is_reported = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._ended.set()
        self._thread.join()
        self._write("ended" if kind is None else f"ended by {kind.__name__}")

    def progress(self, step: int) -> None:
        """Records that the loop is making progress at `step`."""
        self._step, self._progress, self._is_reported = step, time.monotonic(), False

    def _watch(self) -> None:
        cfg = self._config
        interval = cfg.status_every_n_seconds
        if cfg.hang_seconds is not None:
            interval = min(interval, cfg.hang_seconds / 4)
        written = 0.0
        while True:
            if time.monotonic() - written >= cfg.status_every_n_seconds:
                written = time.monotonic()
                phase, seconds = self._goodput.phase
                self._write(f"{phase} for {seconds:.0f} s")
                self._goodput.write()
            if self._ended.wait(interval):
                return
            still = time.monotonic() - self._progress
            if cfg.hang_seconds is not None and still > cfg.hang_seconds:
                self._report(still)

    def _report(self, seconds: float) -> None:
        if self._is_reported:
            return
        self._is_reported = True
        phase, _ = self._goodput.phase
        print(
            f"error: {_process_name()} hangs: no progress for {seconds:.0f} s (trainer.watchdog."
            f"hang_seconds={self._config.hang_seconds:g}) after step {self._step}, in {phase}; the "
            "stacks of all threads follow",
            file=sys.stderr,
            flush=True,
        )
        # Use the original stderr, because a replacement may have no file descriptor.
        faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr, all_threads=True)
        if self._config.abort:
            print(f"error: {_process_name()} exits, because it hangs", file=sys.stderr, flush=True)
            os._exit(1)

    def _write(self, doing: str) -> None:
        now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        line = f"{now} UTC  {_process_name()}  pid {os.getpid()}  step {self._step}  {doing}\n"
        with contextlib.suppress(OSError):
            write_whole(self._path, line)


def _process_name() -> str:
    return (
        f"process {distributed.process_index()} of {distributed.process_count()} on "
        f"{socket.gethostname()}"
    )
