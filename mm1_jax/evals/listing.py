"""Lists all benchmarks and the layouts of their files (`python -m mm1_jax evaluate --list`)."""

import inspect

from mm1_jax.evals.benchmarks.registry import BENCHMARKS
from mm1_jax.evals.predictions.registry import SCORERS


def describe() -> str:
    """Describes the benchmarks and the layouts of their files for people to read."""
    asked = ["asked of a model, with --checkpoint", ""]
    for name, make in BENCHMARKS.items():
        asked += [
            f"{name}: {line}" if i == 0 else f"  {line}"
            for i, line in enumerate((inspect.getdoc(make) or "").splitlines())
        ]
    names_of: dict[str, list[str]] = {}
    for name, scorer in SCORERS.items():
        lines = [f"  predictions  {scorer.layout}"]
        if scorer.annotations:
            lines.append(f"  annotations  {scorer.annotations}")
        names_of.setdefault("\n".join(lines), []).append(name)
    scored = [f"{', '.join(names)}\n{description}" for description, names in names_of.items()]
    return "\n".join([*asked, "", "scored from files, with --score_only", "", *scored])
