"""Results of a study: a CSV file with a row per finished cell, which people commit.

    arm,seed,design,<metric>,...,minutes,commit

A fresh clone has the rows of all machines that committed theirs, and runs the other cells.
"""

import csv
import io
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mm1_jax import __version__
from mm1_jax.storage import write_whole
from mm1_jax.studies.cell_lock import waiting_lock
from mm1_jax.studies.study import Cell, Study


@dataclass(frozen=True)
class Row:
    """Metrics of a finished cell.

    Attributes:
        minutes: Duration of all launches of the cell, without its stages.
        commit: State of the code.
    """

    cell: Cell
    metrics: Mapping[str, float]
    minutes: float
    commit: str


class Results:
    """The rows of a study."""

    def __init__(self, path: Path, study: Study):
        self.path = path
        self._study = study
        self._metrics = [metric.name for metric in study.metrics]
        self._header = ["arm", "seed", "design", *self._metrics, "minutes", "commit"]

    def read(self) -> dict[Cell, Row]:
        """Returns the rows by cell.

        Raises:
            ValueError: The file has other columns, a damaged row, or a row of another design.
        """
        if not self.path.exists():
            return {}
        lines = list(csv.reader(io.StringIO(self.path.read_text())))
        if not lines:
            return {}
        if lines[0] != self._header:
            raise ValueError(
                f"{self.path}: its columns are {','.join(lines[0])}, and those of the study are "
                f"{','.join(self._header)}; move the file, or restore the design of the study"
            )
        rows: dict[Cell, Row] = {}
        digests = {arm.name: self._study.digest(arm) for arm in self._study.arms}
        for number, line in enumerate(lines[1:], start=2):
            where = f"{self.path}, line {number}"
            try:
                values = dict(zip(self._header, line, strict=True))
                cell = Cell(values["arm"], int(values["seed"]))
                metrics = {name: float(values[name]) for name in self._metrics}
                row = Row(cell, metrics, float(values["minutes"]), values["commit"])
            except ValueError:
                raise ValueError(
                    f"{where}: {','.join(line)!r} is no row of the columns; remove it (the cell is "
                    "then run again)"
                ) from None
            if digests.get(cell.arm) != values["design"]:
                raise ValueError(
                    f"{where}: the row of {cell} is of a design {values['design']!r}, and the arm "
                    f"has {digests.get(cell.arm)!r}; restore the arm, or remove its rows"
                )
            if cell in rows and rows[cell] != row:
                raise ValueError(f"{where}: {cell} has two rows; remove one")
            rows[cell] = row
        return rows

    def append(self, row: Row) -> None:
        """Adds a row, unless its cell has one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with waiting_lock(self.path.with_name(f".{self.path.name}.lock")):
            if row.cell in self.read():
                return
            text = self.path.read_text() if self.path.exists() else ""
            file = io.StringIO()
            writer = csv.writer(file, lineterminator="\n")
            if not text.strip():
                writer.writerow(self._header)
            digest = self._study.digest(self._study.arm(row.cell.arm))
            values = [f"{row.metrics[name]:.6g}" for name in self._metrics]
            writer.writerow([*row.cell, digest, *values, f"{row.minutes:.1f}", row.commit])
            end = "" if text.endswith("\n") or not text else "\n"
            write_whole(self.path, text + end + file.getvalue())


def code_state() -> str:
    """Returns the commit of the current folder, with "+" if it has changes; or the version."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        is_changed = bool(_git("status", "--porcelain", "--untracked-files=no", "--", "*.py"))
        return commit + "+" * is_changed
    except (OSError, subprocess.CalledProcessError):
        return __version__


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], capture_output=True, text=True, check=True
    ).stdout.strip()
