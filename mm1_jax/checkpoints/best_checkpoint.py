"""Step with the best value of an evaluation metric.

best.json    {"step": ..., "metric": ..., "value": ...}, next to the checkpoints
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from etils import epath

from mm1_jax.multihost import distributed

BEST = "best.json"


class BestCheckpoint:
    """Best step so far; persists across launches."""

    def __init__(
        self,
        directory: epath.Path,
        *,
        metric: str | None,
        mode: Literal["min", "max"],
        report: Callable[[str], None],
    ):
        """Reads `best.json` in `directory` if it exists; calls `report` if it is damaged.

        Args:
            metric: Name of the metric. None disables tracking.
        """
        self._path = directory / BEST
        self._metric = metric
        self._sign = 1 if mode == "max" else -1
        self._best = self._read(report)

    @property
    def step(self) -> int | None:
        return self._best.get("step")

    def record_metrics(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Records the metrics of an evaluation; returns whether its step is the best so far."""
        value = metrics.get(self._metric) if self._metric is not None else None
        if value is None or not math.isfinite(value):
            return False
        known = self._best.get("value") if self._best.get("metric") == self._metric else None
        if known is not None and self._sign * value <= self._sign * known:
            return False
        self._best = {"step": step, "metric": self._metric, "value": value}
        if distributed.is_first():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self._best) + "\n")
        return True

    def _read(self, report: Callable[[str], None]) -> dict[str, Any]:
        if not self._path.exists():
            return {}
        try:
            best = json.loads(self._path.read_text())
            return {"step": int(best["step"]), "metric": best["metric"], "value": best["value"]}
        except (OSError, ValueError, LookupError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            report(
                f"error: {self._path}: damaged ({type(error).__name__}: {reason}) and ignored; "
                "the best of the earlier checkpoints is no longer known"
            )
            return {}
