"""Anomalous steps: a loss or gradient that is not finite, or a gradient that is far too large.

Policies:

    stop       the run ends with an error; the last checkpoint precedes the anomaly
    skip       the compiled step leaves parameters and moments bit-identical
    roll_back  the newest checkpoint before the anomaly is restored, and the batch is excluded

Runs stay deterministic: `excluded_steps.json` records the excluded steps, so that a restart
excludes the same ones.
"""

import json
import statistics
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from mm1_jax.config import Configurable, config_class
from mm1_jax.field_types import Positive, PositiveInt
from mm1_jax.storage import write_whole

# Minimum number of steps for a meaningful median.
_MIN_STEPS = 20


class NonFiniteLoss(FloatingPointError):
    """Raised if the loss or gradient of a step is not finite, or the gradient is too large."""

    def __init__(self, step: int, message: str):
        super().__init__(message)
        self.step = step


class Anomalies(Configurable):
    """Detects anomalous steps by their loss and gradient norm."""

    @config_class
    class Config(Configurable.Config):
        policy: Literal["stop", "skip", "roll_back"] = "stop"
        # A gradient norm above this, before clipping, is also an anomaly. None disables it.
        max_grad_norm: Positive | None = None
        # A gradient norm above this factor times the median of the last `spike_window` steps is
        # also an anomaly. None disables it. It is known only after the step, so not for `skip`.
        spike_factor: Positive | None = None
        spike_window: PositiveInt = 200
        # More than this many consecutive anomalies, skipped or rolled back, end the run.
        max_in_a_row: PositiveInt = 10

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        if cfg.policy == "skip" and cfg.spike_factor is not None:
            raise ValueError(
                "anomalies.spike_factor is checked only after a step; policy='skip' decides inside "
                "of the step, by max_grad_norm"
            )
        self._norms: deque[float] = deque(maxlen=cfg.spike_window)
        self._num_consecutive = 0

    @property
    def skips(self) -> bool:
        return self._config.policy == "skip"

    @property
    def rolls_back(self) -> bool:
        return self._config.policy == "roll_back"

    def accepts(self, total_loss: jax.Array, grad_norm: jax.Array) -> jax.Array:
        """Returns, inside the compiled step, whether its update is applied."""
        is_fine = jnp.isfinite(total_loss) & jnp.isfinite(grad_norm)
        if self._config.max_grad_norm is not None:
            is_fine &= grad_norm <= self._config.max_grad_norm
        return is_fine

    def judge(self, record: Mapping[str, Any]) -> str | None:
        """Checks the record of a step; returns a message if it was skipped, None if it is normal.

        Raises:
            NonFiniteLoss: The step is anomalous and was not skipped, or too many in a row were.
        """
        reason = self._reason(record)
        if reason is None:
            self._num_consecutive = 0
            self._norms.append(record["grad_norm"])
            return None
        self._num_consecutive += 1
        if self.skips and self._num_consecutive <= self._config.max_in_a_row:
            return f"step {record['step']} is skipped: {reason}"
        raise NonFiniteLoss(record["step"], f"step {record['step']}: {reason}. {self._advice()}")

    def may_roll_back(self) -> bool:
        """Returns whether to restore a checkpoint and resume after `judge` has raised."""
        return self.rolls_back and self._num_consecutive <= self._config.max_in_a_row

    def _reason(self, record: Mapping[str, Any]) -> str | None:
        cfg, norm = self._config, record["grad_norm"]
        what = (
            f"loss {record['total_loss']}, gradient norm {norm} at learning rate "
            f"{record['learning_rate']:.3g}; cross entropy by corpus: {_by_corpus(record)}"
        )
        if not np.isfinite([record["total_loss"], norm]).all():
            return what
        if cfg.max_grad_norm is not None and norm > cfg.max_grad_norm:
            return f"{what}; above anomalies.max_grad_norm={cfg.max_grad_norm:g}"
        if cfg.spike_factor is not None and len(self._norms) >= _MIN_STEPS:
            median = statistics.median(self._norms)
            if norm > cfg.spike_factor * median:
                return f"{what}; {norm / median:.1f} times the median of {len(self._norms)} steps"
        return None

    def _advice(self) -> str:
        if self.skips or self.rolls_back:
            return (
                f"{self._num_consecutive} in a row, with trainer.anomalies.max_in_a_row="
                f"{self._config.max_in_a_row}: training stops, and this step is not saved"
            )
        return (
            "Training stops, and this step is not saved. Restart with a lower learning rate, "
            "or without the corpus at fault, in a new --output_dir: this folder cannot be resumed "
            "with another config"
        )


class ExcludedSteps:
    """Steps whose batches are excluded, stored in a file of the run."""

    def __init__(self, directory: Path):
        self._path = directory / "excluded_steps.json"
        self._steps: list[int] = []
        if self._path.exists():
            try:
                self._steps = [int(step) for step in json.loads(self._path.read_text())]
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{self._path}: damaged ({error}); it must list the excluded steps, such as "
                    "[3, 17]; rewrite it, or remove it to exclude no step"
                ) from None

    def __contains__(self, step: int) -> bool:
        return step in self._steps

    def add(self, step: int, *, write: bool) -> None:
        self._steps = sorted({*self._steps, step})
        if write:
            write_whole(self._path, json.dumps(self._steps) + "\n")


def _by_corpus(record: Mapping[str, Any]) -> str:
    losses = (
        f"{name.removeprefix('loss/')} {value}"
        for name, value in record.items()
        if name.startswith("loss/")
    )
    return ", ".join(losses) or "none scored"
