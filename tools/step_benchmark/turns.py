"""Two sides in processes of their own that train by turns, and the ratios of their figures."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from mm1_jax.flags import local_path, whole

ROOT = Path(__file__).parents[2]
OURS = "ours"
MIB = 2**20


class Side(Protocol):
    """A train step with its state and a batch."""

    def step(self) -> float:
        """Trains for a step; returns its loss."""
        ...

    def breakdown(self) -> dict[str, float]:
        """Returns the seconds of a step by kind of operation."""
        ...


class Arm:
    """A side in a process of its own, which waits while the other one trains."""

    def __init__(self, name: str, tool: str, options: Sequence[str]):
        command = [sys.executable, tool, f"--arm={name}", *options]
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def ask(self, request: str) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{request}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(f"the process of {self.name} ended with {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def add_turn_options(parser: argparse.ArgumentParser, *, steps: int) -> None:
    """Adds the options of turns, and those with which a tool starts its sides.

    Args:
        steps: Default of the steps of a turn.
    """
    for name, default, text in (
        ("rounds", 5, "turns of each side"),
        ("steps", steps, "steps of a turn"),
        ("threads", 2, "threads of each side on a CPU, at most as many as the process has cores"),
    ):
        help = f"{text}; default: %(default)s"
        parser.add_argument(f"--{name}", type=whole(), default=default, metavar="N", help=help)
    parser.add_argument(
        "--breakdown",
        action="store_true",
        help="also profile a step of each side by kind of operation; with one thread, the times "
        "add up to a step",
    )
    parser.add_argument(
        "--json", type=local_path, metavar="FILE", help="also write the figures to this file"
    )
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=local_path, help=argparse.SUPPRESS)


def answer(side: Side) -> None:
    """Answers each line of stdin: a number of steps, or `breakdown`."""
    from mm1_jax.host_memory import peak_bytes

    for line in sys.stdin:
        if line.strip() == "breakdown":
            print(json.dumps(side.breakdown()), flush=True)
            continue
        start, cpu_start = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            loss = side.step()
        found = {
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu_start,
            "peak_bytes": peak_bytes(),
            "loss": loss,
        }
        print(json.dumps(found), flush=True)


def measure(
    names: Sequence[str], tool: str, options: Sequence[str], flags: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Returns the figures of each side: losses and seconds by turn, and peak memory.

    Args:
        tool: The script that runs a side if it gets `--arm=NAME`.
        options: Further options of each.
        flags: Values of `add_turn_options`.
    """
    arms = [Arm(name, tool, options) for name in names]
    try:
        # The first step of a side prepares the others.
        found = {arm.name: {"losses": [arm.ask("1")["loss"]]} for arm in arms}
        for _ in range(flags.rounds):
            for arm in arms:
                turn, figures = arm.ask(str(flags.steps)), found[arm.name]
                figures["losses"].append(turn["loss"])
                figures["peak_bytes"] = turn["peak_bytes"]
                for key in ("seconds", "cpu_seconds"):
                    figures.setdefault(key, []).append(turn[key] / flags.steps)
        if flags.breakdown:
            for arm in arms:
                found[arm.name]["breakdown"] = arm.ask("breakdown")
        return found
    finally:
        for arm in arms:
            arm.close()


def ratio_lines(found: Mapping[str, Any], peer: str, unit: str) -> list[str]:
    """Returns lines with our rate and memory as ratios of the peer's.

    Args:
        unit: What a step processes, such as "images".
    """
    ours, theirs = found[OURS], found[peer]
    shown = []
    for what, key in ((f"{unit}/s", "seconds"), (f"{unit} per CPU s", "cpu_seconds")):
        ratios = [other / own for own, other in zip(ours[key], theirs[key], strict=True)]
        shown.append(
            f"{what} of ours over {peer}'s: {median(ratios):.2f}, in rounds "
            f"{min(ratios):.2f} to {max(ratios):.2f}"
        )
    return [*shown, f"peak memory: {ours['peak_bytes'] / theirs['peak_bytes']:.2f} of {peer}'s"]


def breakdown_lines(found: Mapping[str, Any], peer: str) -> list[str]:
    """Returns a table of the seconds of a step by kind of operation."""
    sides = (found[name]["breakdown"] for name in (OURS, peer))
    both = [{**side, "all": sum(side.values())} for side in sides]
    kinds = sorted(both[0].keys() | both[1].keys(), key=lambda kind: -both[0].get(kind, 0))
    shown = [f"| seconds of a step | ours | {peer} | ratio |", "|---|---:|---:|---:|"]
    for kind in kinds:
        own, other = (side.get(kind, 0.0) for side in both)
        ratio = f"{own / other:.2f}" if other else ""
        shown.append(f"| {kind} | {own:.3f} | {other:.3f} | {ratio} |")
    return shown
