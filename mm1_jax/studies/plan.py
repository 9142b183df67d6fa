"""The plan of a study: its cells by index, the minutes of each, and what is left."""

from collections.abc import Mapping, Sequence

from mm1_jax.studies.results import Row
from mm1_jax.studies.study import Cell, Run, Study


def plan(study: Study, cells: Sequence[Cell], rows: Mapping[Cell, Row], jobs: int = 1) -> str:
    """Returns the plan as text.

    Minutes are means of the rows of an arm, and those of the design where there is none. The time
    that is left assumes that stages have to be made for every seed that has a cell left.
    """
    lines = [f"{study.name}: {study.design}", ""]
    width = max(len(str(cell)) for cell in cells)
    left = 0.0
    for index, cell in enumerate(cells):
        minutes = _minutes(study.arm(cell.arm), rows)
        if cell in rows:
            state = f"done in {rows[cell].minutes:.1f} min"
        else:
            state = f"left, about {minutes:.0f} min"
            left += minutes
        lines.append(f"  {index:3}  {cell!s:{width}}  {state}")
    stages = {
        (stage.name, cell.seed): stage.minutes
        for cell in cells
        if cell not in rows
        for stage in study.stages_of(study.arm(cell.arm))
    }
    for (name, seed), minutes in stages.items():
        lines.append(f"       stage {name}, seed {seed}: about {minutes:.0f} min, unless made")
    done = sum(cell in rows for cell in cells)
    total = left + sum(stages.values())
    lines += [
        "",
        f"{len(cells)} runs: {done} done, {len(cells) - done} left, which take about "
        f"{left:.0f} min, and {sum(stages.values()):.0f} min for stages: {total / 60:.1f} hours on "
        "two quiet cores"
        + (f"; {jobs} jobs share the cores and take about as long together" * (jobs > 1)),
    ]
    return "\n".join(lines)


def _minutes(run: Run, rows: Mapping[Cell, Row]) -> float:
    measured = [row.minutes for cell, row in rows.items() if cell.arm == run.name]
    return sum(measured) / len(measured) if measured else run.minutes
