"""Metrics as sums, which add over rows, devices and steps, and are divided only at the end.

A metric is either a `Mean` (a sum with its weight) or a plain array (a count). Every leaf of a
metrics dict is thus a sum, and dicts with the same names are added leaf by leaf.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean before division; `total` and `weight` have the same shape."""

    total: Any
    weight: Any

    def ratio(self) -> jax.Array:
        """Returns total / weight, or 0 if the weight is 0, so that the gradient is finite."""
        has_weight = self.weight > 0
        return jnp.where(has_weight, self.total / jnp.where(has_weight, self.weight, 1), 0)


Metrics = dict[str, Any]


def add(*metrics: Metrics) -> Metrics:
    """Adds metrics leaf by leaf."""
    return jax.tree.map(lambda *leaves: sum(leaves[1:], start=leaves[0]), *metrics)


def divide(metrics: Metrics) -> dict[str, np.ndarray]:
    """Returns host values: means divided (NaN if their weight is 0), counts unchanged."""
    metrics = jax.device_get(metrics)
    return {
        name: _divide(metric) if isinstance(metric, Mean) else np.asarray(metric)
        for name, metric in metrics.items()
    }


def _divide(mean: Mean) -> np.ndarray:
    # Divide in float64, so that the division adds no rounding error to the float32 sums.
    total, weight = np.asarray(mean.total, np.float64), np.asarray(mean.weight, np.float64)
    return np.divide(total, weight, out=np.full(np.shape(total), np.nan), where=weight > 0)
