"""Scores prediction files without a model (`python -m mm1_jax evaluate --score_only`)."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mm1_jax.config import close_names
from mm1_jax.evals.predictions.files import SUFFIXES
from mm1_jax.evals.predictions.registry import SCORERS
from mm1_jax.evals.predictions.scorer import ScoringJob
from mm1_jax.evals.scoring.java_captions import JAVA_METRICS

# The value of --benchmarks for all benchmarks that have a subfolder in --predictions.
ALL = "all"


def score_predictions(flags: Namespace) -> tuple[dict[str, Any], list[str]]:
    """Returns the scores of all benchmarks, and notes on them.

    Raises:
        ValueError: A mistake that the user can fix, such as a wrong flag or a malformed file.
    """
    java_metrics = [name for name in flags.caption_metrics.split(",") if name]
    if unknown := [name for name in java_metrics if name not in JAVA_METRICS]:
        raise ValueError(
            f"--caption_metrics={flags.caption_metrics}: unknown metric {unknown[0]!r}; expected "
            f"some of {', '.join(JAVA_METRICS)}"
        )
    names = _benchmarks(flags)
    predictions = _by_benchmark(flags.predictions, names, "--predictions")
    annotations = _by_benchmark(flags.annotations, names, "--annotations")
    if lacking := [name for name in names if name not in predictions]:
        raise ValueError(
            f"--predictions: none for {lacking[0]}; give --predictions={lacking[0]}=PATH"
        )
    if len(set(annotations.values())) < len(annotations):
        raise ValueError("--annotations: for several benchmarks, give --annotations=NAME=FILE")
    scores: dict[str, Any] = {}
    notes: list[str] = []
    for name in names:
        path = predictions[name]
        # A path without a benchmark's name serves all benchmarks.
        served = len(names) if str(path) in map(str, map(Path, flags.predictions)) else 1
        job = ScoringJob(annotations.get(name), java_metrics)
        paths = _files(name, path, served)
        for key, metrics in SCORERS[name].score(paths, job).items():
            scores[f"{name}/{key}"] = metrics
        notes += job.notes
    return scores, notes


def _benchmarks(flags: Namespace) -> list[str]:
    """Returns the names in --benchmarks. Raises ValueError if there is no such benchmark."""
    if flags.benchmarks == ALL:
        names = [
            name for name in SCORERS if any(Path(path, name).is_dir() for path in flags.predictions)
        ]
        if not names:
            raise ValueError(
                f"--predictions={','.join(flags.predictions)}: no subfolder has the name of a "
                f"benchmark; for --benchmarks={ALL} give a folder with some of {', '.join(SCORERS)}"
            )
        return names
    names = [name for name in flags.benchmarks.split(",") if name]
    for name in names:
        if name not in SCORERS:
            close = close_names(name, SCORERS)
            hint = (
                f"did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(SCORERS)}."
            )
            raise ValueError(f"--benchmarks={flags.benchmarks}: unknown benchmark {name!r}; {hint}")
    return list(dict.fromkeys(names))


def _by_benchmark(paths: Sequence[str], names: Sequence[str], flag: str) -> dict[str, Path]:
    """Returns the path of each benchmark: its own (NAME=PATH), or the one without a name."""
    found: dict[str, Path] = {}
    for given in paths:
        name, equals, path = given.partition("=")
        if equals and name in names:
            keys = [name]
        elif equals and "/" not in name and not Path(given).exists():
            raise ValueError(
                f"{flag}={given}: {name!r} is not among --benchmarks={','.join(names)}"
            )
        else:
            keys, path = list(names), given
        for key in keys:
            if key in found:
                raise ValueError(
                    f"{flag}={given}: {key} already has {found[key]}; give {flag}=NAME=PATH once "
                    "for each benchmark"
                )
            found[key] = Path(path)
    return found


def _files(name: str, path: Path, num_benchmarks: int) -> list[Path]:
    """Returns the prediction files of a benchmark under a path."""
    if not path.exists():
        raise ValueError(f"--predictions={path}: no such file or folder")
    subfolder = path / name
    if num_benchmarks > 1 and not subfolder.is_dir():
        raise ValueError(
            f"--predictions={path}: is for {num_benchmarks} benchmarks, but has no subfolder "
            f"{name!r}; give --predictions={name}=PATH"
        )
    if path.is_file():
        return [path]
    folder = subfolder if subfolder.is_dir() else path
    if not (found := SCORERS[name].files(folder)):
        raise ValueError(
            f"{folder}: no file of {name}; expected {', '.join(SUFFIXES)}: {SCORERS[name].layout}"
        )
    return found


def table(scores: Mapping[str, Any], indent: str = "") -> list[str]:
    """Returns lines of names and numbers, with groups indented."""
    lines = []
    for name, value in scores.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{name}", *table(value, indent + "  ")]
        else:
            shown = f"{value:.6g}" if isinstance(value, float) else str(value)
            lines.append(f"{indent}{name:<{max(36 - len(indent), 1)}} {shown}")
    return lines
