"""Table of chat models in the layout of MM1's Table 4: published rows, and those of runs.

Rows of runs come from `scores.json`, which the command evaluate writes. A number that a run lacks
is shown as "-".
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

# The end of the key that counts the records of a benchmark that were not asked.
RECORDS_LEFT_OUT = "records_left_out"
MISSING = "-"


class Part(NamedTuple):
    """One number of a column.

    Attributes:
        title: Title of the number in CSV.
        benchmark: Name of the benchmark.
        metric: Name of the metric; None if it cannot be computed from published files.
        scale: Factor that converts the metric to the unit of the table.
    """

    title: str
    benchmark: str
    metric: str | None
    scale: float = 1.0

    def value(self, scores: Mapping[str, float], shots: int = 0) -> float | None:
        value = scores.get(f"{self.benchmark}/{shots}/{self.metric}")
        return None if value is None else self.scale * value


# The columns in the order of the paper, some with two numbers. MMMU's test split and SEED-Bench's
# videos have no numbers here: the answers of the former are on a server, and videos are not asked.
COLUMNS: Mapping[str, tuple[Part, ...]] = {
    "VQAv2": (Part("VQAv2", "vqav2_chat", "acc_processed"),),
    "TVQA": (Part("TextVQA", "textvqa_chat", "acc_processed"),),
    "SQA-I": (Part("ScienceQA image", "scienceqa", "img_acc"),),
    "MMMU val/test": (
        Part("MMMU val", "mmmu", "overall", 100.0),
        Part("MMMU test", "mmmu", None),
    ),
    "MathV": (Part("MathVista testmini", "mathvista", "accuracy"),),
    "MME-P": (Part("MME perception", "mme", "Perception"),),
    "MME-C": (Part("MME cognition", "mme", "Cognition"),),
    "MMB": (Part("MMBench", "mmbench", "circular_acc"),),
    "SEED all/img": (
        Part("SEED all", "seed", None),
        Part("SEED image", "seed", "image_acc"),
    ),
    "POPE": (Part("POPE", "pope", "f1", 100.0),),
    "LLaVA-W": (Part("LLaVA-Bench wild", "llava_bench", "relative"),),
    "MM-Vet": (Part("MM-Vet", "mmvet", "total"),),
}
PARTS: tuple[Part, ...] = tuple(part for parts in COLUMNS.values() for part in parts)

# MM1 (arXiv 2403.09611), Table 4; the last two rows as quoted there. "-" was not published.
_PUBLISHED = """
MM1-3B-Chat      82.0 71.9 69.4 33.9/33.7 32.0 1482.5 279.3 67.8 63.0/68.8 87.4 72.1 43.7
MM1-3B-MoE-Chat  82.5 72.9 76.1 38.6/35.7 32.6 1469.4 303.1 70.8 63.9/69.4 87.6 76.8 42.2
MM1-7B-Chat      82.8 72.8 72.6 37.0/35.6 35.9 1529.3 328.9 72.3 64.0/69.9 86.6 81.5 42.1
MM1-7B-MoE-Chat  83.4 73.8 74.4 40.9/37.9 40.9 1597.4 394.6 72.7 65.5/70.9 87.8 84.7 45.2
MM1-30B-Chat     83.7 73.5 81.0 44.7/40.3 39.4 1637.6 431.4 75.1 65.9/72.1 87.6 89.3 48.7
LLaVA-1.5-7B     78.5 58.2 66.8 -/-       -    1511   316   64.3 58.6/66.1 85.9 63.4 31.1
LLaVA-NeXT-7B    81.8 64.9 70.1 35.8/-    34.6 1519   332   67.4 -/70.2    86.5 81.6 43.9
"""
# MathVista after 0, 4 and 8 exemplars, the last with exemplars of mixed resolution (section 5.2).
MATHVISTA_SHOTS: tuple[int, ...] = (0, 4, 8)
_PUBLISHED_SHOTS = {"MM1-30B-Chat": (39.4, 41.9, 44.4)}
_MATHVISTA = COLUMNS["MathV"][0]

NOTES = """\
Rows marked "published" are quoted from MM1's Table 4 and were not measured here. MMBench changed
its data between the versions of the paper, so compare only rows of the same split. POPE is the mean
F1 of its three parts, MMBench the circular accuracy. `-` marks what a model lacks: the answers of
MMMU's test split are on a server, and the videos of SEED-Bench are not asked."""


@dataclass(frozen=True)
class Row:
    """The numbers of a model.

    Attributes:
        values: Numbers by `Part.title`.
        by_shots: Scores on MathVista by the number of exemplars.
        partial: Titles of the numbers that come from a subset of the records.
    """

    name: str
    values: Mapping[str, float]
    by_shots: Mapping[int, float] = field(default_factory=dict)
    partial: frozenset[str] = frozenset()
    is_published: bool = False


def published_rows() -> list[Row]:
    """Returns the rows of the paper."""
    rows = []
    for line in _PUBLISHED.strip().splitlines():
        name, *cells = line.split()
        numbers = [number for cell in cells for number in cell.split("/")]
        values = {
            part.title: float(number)
            for part, number in zip(PARTS, numbers, strict=True)
            if number != MISSING
        }
        shots = dict(zip(MATHVISTA_SHOTS, _PUBLISHED_SHOTS.get(name, ()), strict=False))
        rows.append(Row(name, values, shots, is_published=True))
    return rows


def row_of(name: str, scores: Mapping[str, float]) -> Row:
    """Returns the row of a model from its scores by `benchmark/shots/metric`."""
    found = {part.title: part.value(scores) for part in PARTS}
    shots = {number: _MATHVISTA.value(scores, number) for number in MATHVISTA_SHOTS}
    partial = {
        part.title for part in PARTS if scores.get(f"{part.benchmark}/0/{RECORDS_LEFT_OUT}", 0)
    }
    return Row(
        name,
        {title: value for title, value in found.items() if value is not None},
        {number: value for number, value in shots.items() if value is not None},
        frozenset(partial),
    )


def read_row(name: str, folder: Path, step: int | None = None) -> Row:
    """Returns the row of a run, from its output folder or from the folder of an evaluation.

    Args:
        step: Step of the evaluation in the folder of a run; defaults to the last one.

    Raises:
        ValueError: There are no scores, or none of the table.
    """
    path = _scores_file(folder, step)
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: scores cannot be read ({error})") from error
    if not isinstance(scores, dict):
        raise ValueError(f"{path}: expected an object of scores by name")
    row = row_of(name, {key: x for key, x in scores.items() if isinstance(x, int | float)})
    if not row.values and not row.by_shots:
        benchmarks = ", ".join(dict.fromkeys(part.benchmark for part in PARTS))
        raise ValueError(f"{path}: has no score of the table; it shows {benchmarks}")
    return row


def _scores_file(folder: Path, step: int | None) -> Path:
    steps = {
        int(path.parent.name): path
        for path in folder.glob("evaluation/*/scores.json")
        if path.parent.name.isdecimal()
    }
    if step is None and (folder / "scores.json").is_file():
        return folder / "scores.json"
    if step is not None and step not in steps:
        raise ValueError(
            f"{folder}: no evaluation of step {step}; there are those of {sorted(steps) or 'none'}"
        )
    if not steps:
        raise ValueError(
            f"{folder}: no scores.json, nor evaluation/STEP/scores.json; evaluate the run first, "
            "with --benchmarks=table4"
        )
    return steps[max(steps) if step is None else step]


def markdown(rows: Sequence[Row]) -> str:
    """Returns the table, and MathVista by the number of exemplars where a run has it."""
    lines = list(_markdown_table(["model", *COLUMNS], [_cells(row) for row in rows]))
    lines += ["", NOTES]
    if any(row.partial for row in rows):
        lines.append("An asterisk marks scores on a random subset of the records.")
    if any(set(row.by_shots) - {0} and not row.is_published for row in rows):
        titles = ["model", *(f"MathV, {number} shots" for number in MATHVISTA_SHOTS)]
        cells = [
            [_name(row), *(_number(row.by_shots.get(number)) for number in MATHVISTA_SHOTS)]
            for row in rows
            if row.by_shots
        ]
        lines += ["", *_markdown_table(titles, cells)]
    return "\n".join(lines) + "\n"


def csv_text(rows: Sequence[Row]) -> str:
    """Returns the table as CSV, with a column per number."""
    shots = [number for number in MATHVISTA_SHOTS if number]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    titles = [part.title for part in PARTS]
    writer.writerow(
        ["model", "source", *titles, *(f"{_MATHVISTA.title} {number} shots" for number in shots)]
    )
    for row in rows:
        numbers = [row.values.get(title) for title in titles]
        numbers += [row.by_shots.get(number) for number in shots]
        source = "published" if row.is_published else "run"
        shown = (MISSING if number is None else f"{number:.6g}" for number in numbers)
        writer.writerow([row.name, source, *shown])
    return file.getvalue()


def _cells(row: Row) -> list[str]:
    cells = [_name(row)]
    for parts in COLUMNS.values():
        shown = (
            _number(row.values.get(part.title)) + "*" * (part.title in row.partial)
            if part.title in row.values
            else MISSING
            for part in parts
        )
        cells.append("/".join(shown))
    return cells


def _name(row: Row) -> str:
    return f"{row.name} (published)" if row.is_published else f"**{row.name}**"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1f}"


def _markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield "|---|" + "---:|" * (len(titles) - 1)
    for row in rows:
        yield f"| {' | '.join(row)} |"
