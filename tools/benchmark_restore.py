"""Measures what checksums add to the restore of a checkpoint.

    python tools/benchmark_restore.py --gib=1.5 --rounds=5

Saves a state of random numbers, and restores it with and without looking for damage first, by
turns. The files are in the page cache, so that storage does not hide the cost.
"""

if __name__ == "__main__":
    from mm1_jax.command import end_on_signals

    # Before the imports, which take seconds.
    end_on_signals()

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from mm1_jax.command import command
from mm1_jax.flags import local_path, number, whole

_LEAVES = 48


def state_of(gib: float) -> Any:
    """Returns a training state whose parameters and two moments take `gib` GiB."""
    import jax

    from mm1_jax.train.train_state import TrainState

    shape = (_LEAVES // 3, int(gib * 2**30 / 4 / _LEAVES / 1024), 1024)
    keys = jax.random.split(jax.random.key(0), 3)
    params, mean, variance = (
        {f"layer_{i}": x for i, x in enumerate(jax.random.normal(key, shape))} for key in keys
    )
    return TrainState(step=jax.numpy.zeros((), int), params=params, opt_state=(mean, variance))


def measure(folder: Path, gib: float, rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each restore, without and with checksums."""
    import jax

    from mm1_jax.checkpoints.checkpointer import Checkpointer

    state = state_of(gib)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    saver = Checkpointer.default_config().instantiate(directory=folder)
    saver.save(1, state, None)
    saver.close()
    del state
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    for turn in range(rounds + 1):
        for name, checksums in (("without", False), ("with", True)):
            cfg = Checkpointer.default_config().set(checksums=checksums)
            checkpointer = cfg.instantiate(directory=folder, read_only=True)
            start = time.perf_counter()
            step = checkpointer.newest_intact_step()
            jax.block_until_ready(checkpointer.restore(shapes, step=step))
            # The first turn warms up.
            if turn:
                seconds[name].append(time.perf_counter() - start)
            checkpointer.close()
    return seconds


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/benchmark_restore.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gib", type=number(0.01), default=1.5, help="size of the state (1.5)")
    parser.add_argument("--rounds", type=whole(), default=5, metavar="N", help="restores each (5)")
    parser.add_argument(
        "--folder", type=local_path, metavar="DIR", help="where to save (a temporary folder)"
    )
    flags = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        seconds = measure(Path(folder) / "checkpoints", flags.gib, flags.rounds)
    print("| checksums | restore s, median (range) | ratio |\n|---|---:|---:|")
    for name, values in seconds.items():
        ratio = median(values) / median(seconds["without"])
        print(
            f"| {name} | {median(values):.2f} ({min(values):.2f} to {max(values):.2f}) "
            f"| {ratio:.2f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
