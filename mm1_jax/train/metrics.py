"""Metrics as sums: they add over rows, devices and steps, and are divided once, at the end.

A metric is either a `Mean`, a sum together with its weight, or a plain array, a count. Every leaf
of a metrics dict is thus a sum, and two dicts of the same names add leaf by leaf.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean that is not divided yet; `total` and `weight` have the same shape."""

    total: Any
    weight: Any

    def ratio(self) -> jax.Array:
        """total / weight on the device; 0 where the weight is 0, so that its gradient is finite."""
        has_weight = self.weight > 0
        return jnp.where(has_weight, self.total / jnp.where(has_weight, self.weight, 1), 0)


Metrics = dict[str, Any]


def add(*metrics: Metrics) -> Metrics:
    """The metrics of all the parts together."""
    return jax.tree.map(lambda *leaves: sum(leaves[1:], start=leaves[0]), *metrics)


def divide(metrics: Metrics) -> dict[str, np.ndarray]:
    """The values to show: means divided, counts as they are; NaN where a mean has no weight."""
    metrics = jax.device_get(metrics)
    return {
        name: _divide(metric) if isinstance(metric, Mean) else np.asarray(metric)
        for name, metric in metrics.items()
    }


def _divide(mean: Mean) -> np.ndarray:
    # In float64: the quotient of a float32 sum and a count then has no rounding of its own.
    total, weight = np.asarray(mean.total, np.float64), np.asarray(mean.weight, np.float64)
    return np.divide(total, weight, out=np.full(np.shape(total), np.nan), where=weight > 0)
