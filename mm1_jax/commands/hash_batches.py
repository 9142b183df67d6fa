"""Prints the SHA-256 hash of every global batch that a run of a config would train on.

    python -m mm1_jax hash_batches --config=mm1_tiny --steps=0:8 --hosts=4 --workers=2

The hashes do not depend on the numbers of hosts and workers, nor on restarts that change them.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from mm1_jax.command import command, started_as
from mm1_jax.data.input_iterator import InputIterator, merge_states
from mm1_jax.data.mixed_input import MixedInput
from mm1_jax.flags import local_path, whole
from mm1_jax.launch.config_options import (
    add_config_options,
    chosen_launch,
    say_note,
    split_overrides,
)
from mm1_jax.storage import write_whole

EPILOG = """\
One process makes the parts of all hosts, one after another, as each host would. A hash covers the
names, dtypes, shapes and bytes of all arrays, pixels included.

examples:
  %(prog)s --config=mm1_tiny --steps=1000:1004
  %(prog)s --config=mm1_tiny --steps=0:100 --hosts=2 --state=state.json
      after a stop, the same command with --hosts=8 resumes
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=started_as("hash_batches"),
        description="Prints the SHA-256 hash of each global batch that a config trains on.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_options(parser)
    parser.add_argument(
        "--steps",
        default="0:10",
        type=_steps,
        metavar="A:B",
        help="steps A to B - 1 (default: 0:10)",
    )
    parser.add_argument("--hosts", default=1, type=whole(), help="number of hosts (default: 1)")
    parser.add_argument(
        "--workers", type=whole(0), help="workers per host (default: those of the config)"
    )
    parser.add_argument(
        "--state",
        type=local_path,
        metavar="FILE",
        help="file that stores the state after the last batch; resumes from it if it exists",
    )
    return parser.parse_args(arguments)


def _steps(text: str) -> range:
    first, colon, last = text.partition(":")
    try:
        steps = range(int(first or 0), int(last if colon else first) + (not colon))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected A:B, such as 0:10") from None
    if steps.start < 0 or not steps:
        raise argparse.ArgumentTypeError(f"{text!r}: holds no step")
    return steps


class Hosts:
    """Iterators of all hosts, whose parts are joined into global batches."""

    def __init__(self, input: MixedInput, num_hosts: int):
        if num_hosts < 1 or input.batch_size % num_hosts:
            raise ValueError(
                f"--hosts={num_hosts}: must divide input.batch_size={input.batch_size}"
            )
        size = input.batch_size // num_hosts
        self.input = input
        self.iterators: list[InputIterator] = [
            input.iterator(range(h * size, (h + 1) * size)) for h in range(num_hosts)
        ]

    def __next__(self) -> Any:
        parts: list[Any] = [next(iterator) for iterator in self.iterators]
        kind = type(parts[0])
        return kind(
            **{
                field.name: np.concatenate([getattr(part, field.name) for part in parts])
                for field in fields(kind)
            }
        )

    @property
    def step(self) -> int:
        return self.iterators[0].step

    def state(self) -> dict[str, Any]:
        return merge_states([iterator.get_state() for iterator in self.iterators])

    def restore(self, state: dict[str, Any]) -> None:
        for iterator in self.iterators:
            iterator.set_state(state)

    def skip_to(self, step: int) -> None:
        """Plans the steps before `step` without making their batches."""
        planner = self.input.planner(range(self.input.batch_size))
        while planner.step < step:
            planner.skip()
        planned = {"step": planner.step, "next_index": planner.next_index.tolist()}
        self.restore(self.state() | planned)

    def close(self) -> None:
        for iterator in self.iterators:
            iterator.close()


def batch_hash(batch: Any) -> str:
    digest = hashlib.sha256()
    for field in fields(batch):
        array = np.ascontiguousarray(getattr(batch, field.name))
        digest.update(f"{field.name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def hashes(
    input: MixedInput, steps: range, num_hosts: int, state_path: Path | None = None
) -> Iterator[tuple[int, str]]:
    """Yields step and hash of every batch, and writes the state after it to `state_path`."""
    hosts = Hosts(input, num_hosts)
    try:
        if state_path is not None and state_path.exists():
            hosts.restore(json.loads(state_path.read_text()))
        if hosts.step < steps.start:
            hosts.skip_to(steps.start)
        while hosts.step < steps.stop:
            step, digest = hosts.step, batch_hash(next(hosts))
            yield step, digest
            if state_path is not None:
                write_whole(state_path, json.dumps(hosts.state()))
    finally:
        hosts.close()


@command
def main(argv: Sequence[str] | None = None) -> int:
    rest, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
    args = parse(rest)
    cfg = chosen_launch(args, overrides).resolved_config(note=say_note).input
    if args.workers is not None:
        cfg.num_workers = args.workers
    for step, digest in hashes(cfg.instantiate(), args.steps, args.hosts, args.state):
        print(f"{step} {digest}", flush=True)
    return 0
