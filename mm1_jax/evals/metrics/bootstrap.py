"""How sure a score is: percentile intervals of the bootstrap (Efron, 1979).

What is drawn again are units, such as the images of MME, of which both questions are drawn or none.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

# Values of every example under the name of their metric; NaN where an example is not part of it.
Columns = Mapping[str, Float[np.ndarray, "examples"]]
# The mean of each column, as a number or one for each draw, to scores in the same form.
Combine = Callable[[Mapping[str, Float[np.ndarray, "draws"]]], Mapping[str, np.ndarray]]

_DRAWS_AT_ONCE = 100


def column_means(columns: Columns) -> dict[str, Float[np.ndarray, "1"]]:
    """The mean of each column over the examples that are part of it; NaN where none is."""
    return _means(columns, np.ones((1, len(next(iter(columns.values()))))), None)


def intervals(
    columns: Columns,
    units: Sequence[str],
    combine: Combine,
    *,
    level: float = 0.95,
    num_draws: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """The interval of each score that holds it with probability `level`.

    Args:
        units: Of each example, what it is drawn with.
        combine: Makes scores of the means of the columns, elementwise.
    """
    if not 0 < level < 1 or num_draws < 1:
        raise ValueError(f"level={level}, num_draws={num_draws}: expected 0 < level < 1, and draws")
    _, unit_of = np.unique(np.asarray(units), return_inverse=True)
    num_units = int(unit_of.max()) + 1
    rng = np.random.default_rng(seed)
    draws: dict[str, list[np.ndarray]] = {}
    for start in range(0, num_draws, _DRAWS_AT_ONCE):
        size = min(_DRAWS_AT_ONCE, num_draws - start)
        counts = rng.multinomial(num_units, np.full(num_units, 1 / num_units), size)
        for name, values in combine(_means(columns, counts, unit_of)).items():
            draws.setdefault(name, []).append(values)
    tails = [50 * (1 - level), 50 * (1 + level)]
    found = {}
    for name, parts in draws.items():
        values = np.concatenate(parts)
        # A draw may have no example of a small part.
        if (values := values[~np.isnan(values)]).size:
            low, high = np.percentile(values, tails)
            found[name] = (float(low), float(high))
    return found


def _means(
    columns: Columns, counts: np.ndarray, unit_of: np.ndarray | None
) -> dict[str, Float[np.ndarray, "draws"]]:
    """Means weighted by how often each unit is drawn, `counts` of shape [draws, units]."""
    means = {}
    for name, values in columns.items():
        is_part = ~np.isnan(values)
        if unit_of is None:
            totals, numbers = np.where(is_part, values, 0.0), is_part.astype(float)
        else:
            num_units = counts.shape[1]
            totals = np.bincount(unit_of[is_part], values[is_part], minlength=num_units)
            numbers = np.bincount(unit_of[is_part], minlength=num_units)
        number = counts @ numbers
        means[name] = np.where(number > 0, counts @ totals / np.maximum(number, 1), np.nan)
    return means
