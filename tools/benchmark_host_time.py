"""Measures the host time of training: the share of its own Python beside the compiled step.

    python tools/benchmark_host_time.py --steps=100

Trains a decoder of 85M parameters with a tiny encoder on the embedded images as a launch does, with
logs, summaries, status lines and checkpoints. Host time is the time of the loop except for waiting:
for batches, for the device and for saves, which are listed separately. The call that dispatches a
step counts by its CPU time in the calling thread; the rest of it waits for the previous step.
"""

if __name__ == "__main__":
    from mm1_jax.command import end_on_signals

    # Before the imports, which take seconds.
    end_on_signals()

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from mm1_jax.command import command
from mm1_jax.flags import local_path, whole

WARM_UP = 3


class Stopwatch:
    """Seconds spent in wrapped functions: wall time, and CPU time of the calling thread."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._runs = False

    def start(self) -> None:
        self._runs = True

    def stop(self) -> None:
        self._runs = False

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                if self._runs:
                    self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall
                    self.cpu[name] = self.cpu.get(name, 0.0) + time.thread_time() - cpu

        return call


def config(steps: int, batch_size: int) -> Any:
    """Returns `mm1_tiny` with the decoder of 85M parameters, and two saves."""
    from experiments import sizes
    from experiments.pretrain import mm1_tiny

    cfg = mm1_tiny()
    cfg.model.decoder = sizes.decoder("85m")
    cfg.input.set(batch_size=batch_size, num_workers=0)
    cfg.evals = {}
    cfg.trainer.max_steps = WARM_UP + steps
    cfg.trainer.optimizer.warmup_steps = WARM_UP
    cfg.trainer.checkpointer.every_n_steps = WARM_UP + steps // 2
    return cfg


def measure(steps: int, batch_size: int) -> dict[str, float]:
    """Returns the seconds of `steps` steps, by their use."""
    import jax

    from mm1_jax.checkpoints.checkpointer import Checkpointer
    from mm1_jax.experiment import Experiment
    from mm1_jax.train import trainer
    from mm1_jax.train.loop import Loop

    watch, begun = Stopwatch(), []

    class Watched(Loop):
        def _advance(self, step: int, state: Any) -> Any:
            if step == WARM_UP:
                watch.start()
                begun.append((time.perf_counter(), time.thread_time()))
            return super()._advance(step, state)

        def _finish(self, state: Any) -> None:
            # Excludes the save at the end of the run.
            begun.append((time.perf_counter(), time.thread_time()))
            watch.stop()
            super()._finish(state)

    cfg = Experiment.resolve(config(steps, batch_size))
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        stack.enter_context(mock.patch.object(trainer, "Loop", Watched))
        for owner, name in (
            *((Watched, name) for name in ("_next_batch", "_step")),
            (Checkpointer, "save"),
            (jax, "device_get"),
        ):
            timed = watch.timed(name, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, timed))
        cfg.instantiate(output_dir=Path(folder)).run()
    (start, start_cpu), (end, end_cpu) = begun
    save = watch.wall["save"]
    wait = watch.wall["device_get"] + watch.wall["_step"] - watch.cpu["_step"]
    data = watch.wall["_next_batch"]
    total = end - start
    return {
        "steps": steps,
        "total": total,
        "waiting for the device": wait,
        "waiting for data": data,
        "held up by saves": save,
        "host": total - wait - data - save,
        "CPU time of the main thread": end_cpu - start_cpu,
    }


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/benchmark_host_time.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=whole(), default=100, metavar="N", help="(100)")
    parser.add_argument("--batch_size", type=whole(), default=1, metavar="N", help="rows (1)")
    parser.add_argument(
        "--json", type=local_path, metavar="FILE", help="also write the seconds to this file"
    )
    flags = parser.parse_args(argv)
    if flags.steps < 2 or flags.batch_size < 1:
        parser.error("expected at least 2 for --steps, at least 1 for --batch_size")
    seconds = measure(flags.steps, flags.batch_size)
    total = seconds["total"]
    print("\n| of a step | ms | share |\n|---|---:|---:|")
    for name, value in seconds.items():
        if name != "steps":
            print(f"| {name} | {value / flags.steps * 1e3:.2f} | {value / total:.2%} |")
    if flags.json is not None:
        flags.json.write_text(json.dumps(seconds, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
