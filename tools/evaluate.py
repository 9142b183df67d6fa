"""Scores what a model answered to benchmarks, as their official code does.

python tools/evaluate.py --score_only --benchmarks=pope --predictions=FILE --json=scores.json
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

USER_ERROR = 2
ALL = "all"

EPILOG = """\
predictions and annotations:
  A path is a file, or a folder: then the files of it that are in the layout of the benchmark, or of
  its subfolder called NAME where there is one. For several benchmarks give one folder with such
  subfolders, or the flag once for each, as NAME=PATH. --list shows the layouts.

  References stand in the predictions themselves or in a file of their own, --annotations.

scores:
  Under the keys NAME/FILE, where FILE is a prediction file without its suffix (for MME, a subtask).
  The rules of each number, and where they come from: docs/evaluation.md.

examples:
  python tools/evaluate.py --list
  python tools/evaluate.py --score_only --benchmarks=pope --predictions=pope/adversarial.jsonl
  python tools/evaluate.py --score_only --benchmarks=mme --predictions=mme --json=scores.json
  python tools/evaluate.py --score_only --benchmarks=pope,textvqa --predictions=answers
  python tools/evaluate.py --score_only --benchmarks=vqav2,gqa --json=scores.json \\
      --predictions=vqav2=vqa.json --annotations=vqav2=v2_mscoco_val2014_annotations.json \\
      --predictions=gqa=gqa.json --annotations=gqa=testdev_balanced_questions.json
  python tools/evaluate.py --score_only --benchmarks=caption --caption_metrics=METEOR,SPICE \\
      --predictions=captions_val2014_fakecap_results.json \\
      --annotations=annotations/captions_val2014.json

exit codes:
  0    scored
  2    the command or a file must be changed; the message says how
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/evaluate.py",
        description="Scores what a model answered to benchmarks, as their official code does.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--list", action="store_true", help="describe the benchmarks and their layouts, and end"
    )
    parser.add_argument(
        "--score_only", action="store_true", help="score files of predictions; no model is run"
    )
    parser.add_argument(
        "--benchmarks",
        default="",
        metavar="NAME[,NAME]",
        help=f"names of --list; {ALL}: those that have a subfolder in --predictions",
    )
    parser.add_argument(
        "--predictions",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="a file or folder; may be given several times, with the name of the benchmark",
    )
    parser.add_argument(
        "--annotations",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="the references, where the predictions do not hold them",
    )
    parser.add_argument(
        "--caption_metrics",
        default="",
        metavar="NAME[,NAME]",
        help="METEOR, SPICE: of captions as well; they need Java and .[caption-metrics]",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores there as well")
    flags = parser.parse_args(arguments)
    if flags.list:
        return flags
    if not flags.score_only:
        parser.error("--score_only: needed, as files of predictions are what can be evaluated")
    if missing := [
        f"--{name}" for name in ("benchmarks", "predictions") if not getattr(flags, name)
    ]:
        parser.error(f"{', '.join(missing)}: needed here; --help has examples")
    return flags


def describe() -> str:
    """The benchmarks and the layouts of their files, for people to read."""
    from mm1_jax.evals.predictions.registry import SCORERS

    names_of: dict[str, list[str]] = {}
    for name, scorer in SCORERS.items():
        lines = [f"  predictions  {scorer.layout}"]
        if scorer.annotations:
            lines.append(f"  annotations  {scorer.annotations}")
        names_of.setdefault("\n".join(lines), []).append(name)
    return "\n".join(
        f"{', '.join(names)}\n{description}" for description, names in names_of.items()
    )


def by_benchmark(paths: Sequence[str], names: Sequence[str], flag: str) -> dict[str, Path]:
    """The path of each benchmark: its own, NAME=PATH, or the one that has no name."""
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
                    f"{flag}={given}: {key} has {found[key]} already; give {flag}=NAME=PATH once "
                    "for each benchmark"
                )
            found[key] = Path(path)
    return found


def benchmarks(flags: argparse.Namespace) -> list[str]:
    """The names of --benchmarks. Raises ValueError where there is no such benchmark."""
    from mm1_jax.config import close_names
    from mm1_jax.evals.predictions.registry import SCORERS

    if flags.benchmarks == ALL:
        names = [
            name for name in SCORERS if any(Path(path, name).is_dir() for path in flags.predictions)
        ]
        if not names:
            raise ValueError(
                f"--predictions={','.join(flags.predictions)}: no subfolder is called as a "
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
            raise ValueError(f"--benchmarks={flags.benchmarks}: there is no {name!r}; {hint}")
    return list(dict.fromkeys(names))


def files(name: str, path: Path, num_benchmarks: int) -> list[Path]:
    """The prediction files of a benchmark under a path."""
    from mm1_jax.evals.predictions.registry import SCORERS

    if not path.exists():
        raise ValueError(f"--predictions={path}: no such file or folder")
    subfolder = path / name
    if num_benchmarks > 1 and not subfolder.is_dir():
        raise ValueError(
            f"--predictions={path}: it serves {num_benchmarks} benchmarks, and has no subfolder "
            f"{name!r}; give --predictions={name}=PATH"
        )
    if path.is_file():
        return [path]
    folder = subfolder if subfolder.is_dir() else path
    if not (found := SCORERS[name].files(folder)):
        raise ValueError(
            f"{folder}: no file of {name}; expected .json or .jsonl: {SCORERS[name].layout}"
        )
    return found


def score_predictions(flags: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The scores of all benchmarks, and notes on them. Raises ValueError on what can be mended."""
    from mm1_jax.evals.metrics.java_captions import JAVA_METRICS
    from mm1_jax.evals.predictions.base import ScoringJob
    from mm1_jax.evals.predictions.registry import SCORERS

    java_metrics = [name for name in flags.caption_metrics.split(",") if name]
    if unknown := [name for name in java_metrics if name not in JAVA_METRICS]:
        raise ValueError(
            f"--caption_metrics={flags.caption_metrics}: there is no {unknown[0]!r}; expected some "
            f"of {', '.join(JAVA_METRICS)}"
        )
    names = benchmarks(flags)
    predictions = by_benchmark(flags.predictions, names, "--predictions")
    annotations = by_benchmark(flags.annotations, names, "--annotations")
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
        # A path without a name serves all; one with a name is meant for that benchmark.
        served = len(names) if str(path) in map(str, map(Path, flags.predictions)) else 1
        job = ScoringJob(annotations.get(name), java_metrics)
        paths = files(name, path, served)
        for key, metrics in SCORERS[name].score(paths, job).items():
            scores[f"{name}/{key}"] = metrics
        notes += job.notes
    return scores, notes


def table(scores: Mapping[str, Any], indent: str = "") -> list[str]:
    """Lines of names and numbers, groups indented."""
    lines = []
    for name, value in scores.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{name}", *table(value, indent + "  ")]
        else:
            shown = f"{value:.6g}" if isinstance(value, float) else str(value)
            lines.append(f"{indent}{name:<{max(36 - len(indent), 1)}} {shown}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    flags = parse(sys.argv[1:] if argv is None else argv)
    try:
        if flags.list:
            print(describe())
            return 0
        scores, notes = score_predictions(flags)
        if flags.json is not None:
            from mm1_jax.files import write_whole

            write_whole(flags.json, json.dumps(scores, indent=1) + os.linesep)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print("\n".join(table(scores)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
