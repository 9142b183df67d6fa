"""Compares variants of training over seeds: mean and 95% confidence interval of each metric.

python -m mm1_jax compare_runs --metrics='scenes_names/*/accuracy' \\
    mixture='runs/mm1_tiny_names/*' captions='runs/mm1_tiny_names_captions/*'
"""

import argparse
import fnmatch
import glob
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import scipy.stats

from mm1_jax.command import command, started_as
from mm1_jax.flags import local_path
from mm1_jax.storage import write_whole

EPILOG = """\
runs:
  NAME=FOLDER, where FOLDER may contain *; further folders of NAME may follow. In each folder,
  report.json (written at the end of training) or scores.json (of the command evaluate) is read. A
  metric that some runs lack is an error: nothing is averaged over fewer runs.

intervals:
  95%% intervals over runs by Student's t, for the mean over seeds. They do not cover the sampling
  of a benchmark's records; the reports of the command evaluate have those intervals. Differences
  from the first NAME have intervals by Welch's t, which allows different variances.

examples:
  %(prog)s --metrics='scenes_names/*/accuracy' \\
      mixture='runs/mm1_tiny_names/*' captions='runs/mm1_tiny_names_captions/*'

exit codes:
  0    compared
  2    the command or a file must be changed; the message says how
"""


@dataclass(frozen=True)
class Estimate:
    """Mean over runs and half the width of its 95% interval, which is None for a single run."""

    mean: float
    half_width: float | None

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + (
            "" if self.half_width is None else f" \u00b1 {self.half_width:.4f}"
        )


@dataclass(frozen=True)
class Variant:
    """A metric of one variant: value of each run, mean, and difference from the first variant."""

    values: list[float]
    estimate: Estimate
    difference: Estimate


def estimate(values: Sequence[float]) -> Estimate:
    """Returns the mean over runs with its interval by Student's t."""
    x = np.array(values, float)
    if len(x) < 2:
        return Estimate(float(x.mean()), None)
    error = x.std(ddof=1) / np.sqrt(len(x))
    return Estimate(float(x.mean()), float(scipy.stats.t.ppf(0.975, len(x) - 1) * error))


def difference(values: Sequence[float], base: Sequence[float]) -> Estimate:
    """Returns the mean of `values` minus that of `base`, with its interval by Welch's t."""
    x, y = np.array(values, float), np.array(base, float)
    mean = float(x.mean() - y.mean())
    if min(len(x), len(y)) < 2:
        return Estimate(mean, None)
    parts = np.array([x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)])
    if not parts.any():
        return Estimate(mean, 0.0)
    freedom = parts.sum() ** 2 / (parts**2 / [len(x) - 1, len(y) - 1]).sum()
    return Estimate(mean, float(scipy.stats.t.ppf(0.975, freedom) * np.sqrt(parts.sum())))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=started_as("compare_runs"),
        description="Compares variants of training over their seeds.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="[NAME=]FOLDER", help="runs of each variant")
    parser.add_argument(
        "--metrics",
        default="*",
        metavar="PATTERN[,PATTERN]",
        help="keys BENCHMARK/SHOTS/METRIC, may contain *; default: all",
    )
    parser.add_argument(
        "--json", type=local_path, metavar="FILE", help="also write the numbers to FILE"
    )
    return parser.parse_args(arguments)


def grouped(words: Sequence[str]) -> dict[str, list[Path]]:
    """Groups folders by the name in front of them.

    >>> grouped(["a=x", "y", "b=z"]) == {"a": [Path("x"), Path("y")], "b": [Path("z")]}
    True
    """
    groups: dict[str, list[Path]] = {}
    for word in words:
        name, equals, path = word.rpartition("=")
        if equals:
            groups.setdefault(name, [])
        elif not groups:
            raise ValueError(f"{word}: give the first run as NAME=FOLDER")
        # A shell does not expand a pattern after NAME=.
        list(groups.values())[-1] += map(Path, sorted(glob.glob(path)) or [path])
        if equals and list(groups)[-1] != name:
            raise ValueError(f"{word}: {name!r} was given before; put its folders together")
    return groups


def metrics_of(folder: Path) -> dict[str, float]:
    """Returns all metrics of a run, by key."""
    for name in ("report.json", "scores.json"):
        path = folder / name
        if path.exists():
            values = json.loads(path.read_text())
            if not isinstance(values, dict):
                raise ValueError(f"{path}: expected an object of numbers")
            return {key: x for key, x in values.items() if isinstance(x, int | float)}
    raise ValueError(
        f"{folder}: neither report.json nor scores.json is there; a training that has ended has "
        "the first, the output of `python -m mm1_jax evaluate` the second"
    )


def compare(
    groups: Mapping[str, Sequence[Mapping[str, float]]], patterns: Sequence[str]
) -> dict[str, dict[str, Variant]]:
    """Returns metric -> name of the variant -> values and estimates.

    Raises:
        ValueError: A pattern matches no metric, or a run lacks a metric that others have.
    """
    keys = list(dict.fromkeys(key for runs in groups.values() for run in runs for key in run))
    table: dict[str, dict[str, Variant]] = {}
    for pattern in patterns:
        fitting = [key for key in keys if fnmatch.fnmatchcase(key, pattern)]
        if not fitting:
            raise ValueError(f"--metrics={pattern}: matches none of {', '.join(keys)}")
        for key in fitting:
            lacking = [
                f"{name}, run {number}"
                for name, runs in groups.items()
                for number, run in enumerate(runs, start=1)
                if key not in run
            ]
            if lacking:
                raise ValueError(f"{key} is missing in {'; '.join(lacking)}; see --metrics")
            values = {name: [run[key] for run in runs] for name, runs in groups.items()}
            base = next(iter(values.values()))
            table[key] = {
                name: Variant(x, estimate(x), difference(x, base)) for name, x in values.items()
            }
    return table


def markdown(table: Mapping[str, Mapping[str, Variant]]) -> str:
    """Returns a table: a row per metric, a column per variant and per difference to the first."""
    names = list(next(iter(table.values())))
    first, *others = names
    header = [*names, *(f"{name} - {first}" for name in others)]
    lines = [f"| metric | {' | '.join(header)} |", "|---|" + "---:|" * len(header)]
    for key, by_name in table.items():
        cells = [str(by_name[name].estimate) for name in names]
        cells += [str(by_name[name].difference) for name in others]
        lines.append(f"| {key} | {' | '.join(cells)} |")
    counts = ", ".join(f"{len(one.values)} of {name}" for name, one in by_name.items())
    return "\n".join([*lines, "", f"Means and 95% intervals over runs: {counts}."])


@command
def main(argv: Sequence[str] | None = None) -> int:
    flags = parse(sys.argv[1:] if argv is None else argv)
    groups = {
        name: [metrics_of(folder) for folder in folders]
        for name, folders in grouped(flags.runs).items()
    }
    table = compare(groups, flags.metrics.split(","))
    if flags.json is not None:
        numbers = {
            key: {name: asdict(variant) for name, variant in by_name.items()}
            for key, by_name in table.items()
        }
        write_whole(flags.json, json.dumps(numbers, indent=1) + os.linesep)
    print(markdown(table))
    return 0
