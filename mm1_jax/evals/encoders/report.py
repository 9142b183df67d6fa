"""Report of the evaluation of an encoder as Markdown, with a table per protocol."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mm1_jax.evals.encoders.encoder_evaluator import Report
from mm1_jax.evals.scoring.bootstrap import intervals
from mm1_jax.evals.scoring.items import means

ZERO_SHOT, RETRIEVAL = "zero_shot", "retrieval"
_HEADINGS = {ZERO_SHOT: "Zero-shot classification", RETRIEVAL: "Retrieval"}
_NAMES = {
    "acc1": "top-1",
    "acc5": "top-5",
    "mean_per_class_recall": "mean per class",
    **{f"{side}_recall@{k}": f"{side} R@{k}" for side in ("image", "text") for k in (1, 5, 10)},
}


@dataclass(frozen=True)
class Row:
    """Scores of one data set by one protocol.

    Attributes:
        scored: The model: "model", "random" or "pixels".
        is_part: Whether only a part of the pictures was scored.
    """

    data: str
    protocol_name: str
    scored: str
    report: Report
    is_part: bool = False

    @property
    def key(self) -> str:
        name = (
            self.protocol_name if self.scored == "model" else f"{self.protocol_name}_{self.scored}"
        )
        return f"{self.data}/{name}"

    @property
    def protocol(self) -> str:
        return self.report.protocol

    def values(self) -> dict[str, float]:
        """Metrics by `data set/protocol/metric`; intervals end in `metric_low95` and `_high95`."""
        found = dict(self.report.metrics)
        for name, (low, high) in self.intervals.items():
            found |= {f"{name}_low95": low, f"{name}_high95": high}
        if self.report.num_bad:
            found["undecodable_pictures"] = float(self.report.num_bad)
        return {f"{self.key}/{name}": value for name, value in found.items()}

    @functools.cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Returns 95% intervals of the means; queries about one picture are drawn together."""
        found = {}
        for name, right in self.report.right.items():
            units = self.report.units.get(name, np.arange(len(right)))
            found |= intervals({name: right.astype(float)}, units.astype(str).tolist(), means)
        return found


def markdown(rows: Sequence[Row], *, title: str) -> str:
    """Returns the report: a table per protocol in percent, remarks, and the protocols."""
    lines = [f"# {title}", ""]
    for name, heading in _HEADINGS.items():
        lines += _table(heading, [row for row in rows if row.protocol_name == name], False)
    lines += _table("Probes", [row for row in rows if row.protocol_name not in _HEADINGS], True)
    lines += ["Scores in percent, with 95% bootstrap intervals in brackets.", ""]
    if any(row.is_part for row in rows):
        lines += ["An asterisk marks scores on a random part of the pictures.", ""]
    bad = [row for row in rows if row.report.num_bad]
    lines += [f"- `{row.key}`: {row.report.num_bad} pictures cannot be decoded." for row in bad]
    lines += [*([""] if bad else []), "## Protocol", ""]
    lines += [f"- `{row.key}`: {row.protocol}" for row in rows]
    return "\n".join(lines) + "\n"


def _table(heading: str, rows: Sequence[Row], is_probe: bool) -> list[str]:
    if not rows:
        return []
    metrics = list(dict.fromkeys(name for row in rows for name in row.report.metrics))
    titles = ["data set", *(["probe", "features of"] if is_probe else [])]
    titles += [_NAMES.get(name, name) for name in metrics]
    lines = [f"## {heading}", "", _line(titles), "|" + "---|" * (len(titles) - len(metrics))]
    lines[-1] += "---:|" * len(metrics)
    for row in rows:
        cells = [row.data]
        if is_probe:
            cells += [row.protocol_name.removesuffix("_probe"), row.scored]
        found = row.intervals
        for name in metrics:
            value = row.report.metrics.get(name)
            cell = "" if value is None else f"{100 * value:.1f}" + "*" * row.is_part
            if name in found:
                cell += f" [{100 * found[name][0]:.1f}, {100 * found[name][1]:.1f}]"
            cells.append(cell)
        lines.append(_line(cells))
    return [*lines, ""]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
