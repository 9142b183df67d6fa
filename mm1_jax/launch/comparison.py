"""Two configs side by side: the fields that differ, and those of them that a run may not change."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mm1_jax.launch.launch import Launch
from mm1_jax.launch.run_folder import RunFolder, may_change
from mm1_jax.overrides import is_overridden
from mm1_jax.stored_config import Difference, config_differences, shown, stored_differences

MAY_CHANGE = "may change"
KEPT = "the run keeps its value"
FORBIDS = "forbids resuming"


@dataclass(frozen=True)
class Row:
    """A field that differs, or a number that a run depends on.

    Attributes:
        verdict: MAY_CHANGE, KEPT or FORBIDS, for a launch of the second config into the run's
            folder.
    """

    path: str
    first: Any
    second: Any
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """The fields of a run and of a second config that differ.

    Attributes:
        newest_step: The step that the run would resume from; None if it has saved nothing.
    """

    first: str
    second: str
    newest_step: int | None
    rows: list[Row]

    @property
    def is_refused(self) -> bool:
        """True if a launch of the second config into the run's folder is an error."""
        return self.newest_step is not None and any(row.verdict == FORBIDS for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "is_refused": self.is_refused}

    def __str__(self) -> str:
        lines = [f"A: {self.first}", f"B: {self.second}", ""]
        cells = [
            (row.path, f"{shown(row.first)} -> {shown(row.second)}", row.verdict)
            for row in self.rows
        ]
        widths = [max((len(cell[i]) for cell in cells), default=0) for i in range(2)]
        lines += [f"{path:{widths[0]}}  {ab:{widths[1]}}  {last}" for path, ab, last in cells]
        return "\n".join([*lines, *[""] * bool(cells), self._verdict()])

    def _verdict(self) -> str:
        if self.newest_step is None:
            return "A has saved nothing: a launch of B into its folder starts at step 0."
        if not self.is_refused:
            differ = "" if self.rows else "No field differs. "
            return f"{differ}A launch of B into the folder of A resumes at step {self.newest_step}."
        forbidding = sum(row.verdict == FORBIDS for row in self.rows)
        fields = "field forbids" if forbidding == 1 else "fields forbid"
        return (
            f"A launch of B into the folder of A is refused: {forbidding} {fields} resuming. "
            "Launch into a new --output_dir, or undo the change."
        )


def compare_runs(first: RunFolder, second: RunFolder) -> Comparison:
    """Compares the stored configs of two runs.

    Raises:
        ValueError: One of the folders holds no run.
    """
    differences = stored_differences(first.stored_fields(), second.stored_fields())
    rows = [_row(each) for each in differences]
    return Comparison(_described(first), _described(second), first.newest_step(), rows)


def compare_with_launch(run: RunFolder, launch: Launch) -> Comparison:
    """Compares the stored config of a run with the config of a launch.

    Raises:
        ValueError: The folder holds no run, or the launch names no config.
    """
    cfg = launch.resolved_config()
    rows = []
    for each in config_differences(run.stored_fields(), cfg):
        is_kept = each.is_default and not is_overridden(each.path, launch.overrides)
        rows.append(_row(each, KEPT if is_kept else None))
    newest = run.newest_step()
    max_steps = cfg.trainer.max_steps
    if newest is not None and max_steps < newest:
        rows.append(Row("steps made, and trainer.max_steps", newest, max_steps, FORBIDS))
    options = [f"--config={launch.config}", *_options(launch.overrides)]
    if launch.file is not None:
        options[0] = launch.file["source"]
    second = " ".join(options + ["--small"] * launch.small)
    return Comparison(_described(run), second, newest, rows)


def _row(each: Difference, verdict: str | None = None) -> Row:
    fixed = MAY_CHANGE if may_change(each.path) else FORBIDS
    return Row(each.path, each.stored, each.now, verdict or fixed)


def _options(overrides: Mapping[str, str]) -> list[str]:
    return [f"--config.{path}={text}" for path, text in overrides.items()]


def _described(run: RunFolder) -> str:
    newest = run.newest_step()
    steps = "no checkpoint" if newest is None else f"saved at step {newest}"
    return f"{run.path} ({run.launch_name()}, {steps})"
