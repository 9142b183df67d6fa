"""The report of a study: verdicts, tables, and a figure with the interval of each arm."""

import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import scipy.stats

from mm1_jax.storage import write_whole
from mm1_jax.studies.results import Row
from mm1_jax.studies.study import Cell, Claim, Score, Study
from mm1_jax.studies.verdicts import Estimate, Verdict, difference, estimate, scores, verdict

try:
    # By name, because type checkers need not have it installed.
    Figure: Any = importlib.import_module("matplotlib.figure").Figure
except ImportError:
    Figure = None


def write_report(study: Study, rows: Mapping[Cell, Row], folder: Path) -> list[Path]:
    """Writes `report.md`, and `figure.png` if matplotlib is installed; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "report.md"]
    if Figure is not None and rows:
        files.append(folder / "figure.png")
        _draw(Figure, study, rows, files[-1])
    write_whole(files[0], markdown(study, rows, has_figure=len(files) > 1))
    return files


def markdown(study: Study, rows: Mapping[Cell, Row], *, has_figure: bool = False) -> str:
    """Returns the report as Markdown."""
    cells = study.cells()
    missing = [cell for cell in cells if cell not in rows]
    commits = sorted({row.commit for row in rows.values()})
    counts = f"{len(cells) - len(missing)} of {len(cells)} runs"
    lines = [
        f"# {study.name}",
        "",
        study.design,
        "",
        f"`python -m mm1_jax run_study --study={study.name}`: {counts} are done, at commit "
        f"{', '.join(commits) or '-'}.",
        "",
    ]
    if missing:
        lines += [f"Not done: {'; '.join(map(str, missing))}.", ""]
    if study.full_size:
        lines += [f"At full size: {study.full_size}", ""]
    lines += _verdicts(study, rows)
    if has_figure:
        lines += ["![Scores of each arm, with 95% intervals over seeds](figure.png)", ""]
    lines += _table(study, rows, "Scores", _score)
    lines += _table(study, rows, f"Differences from {study.reference}, paired by seed", _difference)
    lines += ["## Arms", "", "| arm | config | overrides | minutes |", "|---|---|---|---:|"]
    for arm in study.arms:
        minutes = [row.minutes for cell, row in rows.items() if cell.arm == arm.name]
        mean = f"{sum(minutes) / len(minutes):.1f}" if minutes else f"{arm.minutes:g} (planned)"
        overrides = ", ".join(f"`{path}={x}`" for path, x in arm.overrides.items())
        name = f"{arm.name}: {arm.text}" if arm.text else arm.name
        lines.append(f"| {name} | `{arm.config}` | {overrides} | {mean} |")
    return "\n".join(lines) + "\n"


def _verdicts(study: Study, rows: Mapping[Cell, Row]) -> list[str]:
    if not study.claims:
        return []
    lines = [
        "## Claims",
        "",
        "| claim | difference, 95% interval | smallest of interest | seeds | verdict |",
        "|---|---|---:|---:|---|",
    ]
    found = [(claim, difference(rows, claim.higher, claim.lower)) for claim in study.claims]
    for claim, each in found:
        least = f"{'below ' * claim.alike}{claim.smallest:g}"
        outcome = verdict(claim, each)
        lines.append(
            f"| {claim.text}: {claim.higher} minus {claim.lower} | {each} | {least} | "
            f"{each.num_seeds} | **{outcome.value}** |"
        )
    lines += [
        "",
        "A difference is reproduced if its interval is above 0 and its mean is at least the "
        "smallest of interest, and refuted if its interval is below that. A likeness is reproduced "
        "if its interval is within the smallest of interest. Intervals are Student's t of the "
        "differences paired by seed. They cover the choice of the seed, not that of the pages, "
        "pictures or questions.",
        "",
    ]
    numbers = sorted({each.num_seeds for _, each in found if 1 < each.num_seeds < 10})
    for number in numbers:
        factor = scipy.stats.t.ppf(0.975, number - 1) / math.sqrt(number)
        lines.append(
            f"With {number} seeds, half an interval is {factor:.1f} standard deviations of the "
            f"differences; with 10 it would be {scipy.stats.t.ppf(0.975, 9) / math.sqrt(10):.1f}."
        )
    return [*lines, *_power(found), ""]


def _power(found: list[tuple[Claim, Estimate]]) -> list[str]:
    """Says how large a difference an undecided claim would have needed."""
    return [
        f"\nUndecided: {claim.text}. With the spread of these seeds, a mean difference above "
        f"{max(claim.smallest, each.high - each.mean):.3f} would have been reproduced."
        for claim, each in found
        if verdict(claim, each) is Verdict.UNDECIDED
        and not claim.alike
        and not math.isinf(each.high)
    ]


def _score(study: Study, rows: Mapping[Cell, Row], score: Score) -> Estimate:
    return estimate(list(scores(rows, score).values()))


def _difference(study: Study, rows: Mapping[Cell, Row], score: Score) -> Estimate:
    return difference(rows, score, Score(study.reference, score.metric))


def _table(study: Study, rows: Mapping[Cell, Row], heading: str, value: Any) -> list[str]:
    names = [metric.name for metric in study.metrics]
    lines = [f"## {heading}", "", f"| arm | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for arm in study.arms:
        cells = [str(value(study, rows, Score(arm.name, name))) for name in names]
        lines.append(f"| {arm.name} | {' | '.join(cells)} |")
    described = [f"- `{metric.name}`: {metric.text}" for metric in study.metrics if metric.text]
    if heading == "Scores" and described:
        lines += ["", *described]
    return [*lines, ""]


def _draw(make_figure: Any, study: Study, rows: Mapping[Cell, Row], path: Path) -> None:
    names = [arm.name for arm in study.arms]
    columns = min(4, len(study.metrics))
    lines = -(-len(study.metrics) // columns)
    size = (3.2 * columns, 0.8 + (1.2 + 0.28 * len(names)) * lines)
    figure = make_figure(figsize=size)
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axis, metric in zip(axes.flat, study.metrics, strict=False):
        for place, name in enumerate(names):
            values = list(scores(rows, Score(name, metric.name)).values())
            if not values:
                continue
            found = estimate(values)
            color = "tab:red" if name == study.reference else "tab:blue"
            axis.plot(values, [place] * len(values), "o", color=color, alpha=0.3, markersize=4)
            axis.plot([found.mean], [place], "D", color=color, markersize=5)
            if not math.isinf(found.low):
                axis.plot([found.low, found.high], [place, place], "-", color=color)
        axis.set_title(metric.name, fontsize=9)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(axis="x", alpha=0.3)
    for axis in list(axes.flat)[len(study.metrics) :]:
        axis.axis("off")
    axes.flat[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
