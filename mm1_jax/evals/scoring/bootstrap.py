"""Percentile intervals of scores by the bootstrap (Efron, 1979).

The bootstrap resamples units, which are groups of examples. A unit of MME, for example, is an image
with both of its questions.
"""

from collections.abc import Sequence

import numpy as np

from mm1_jax.evals.scoring.items import Columns, Combine, Tally

_DRAWS_AT_ONCE = 100


def intervals(
    columns: Columns,
    units: Sequence[str],
    combine: Combine,
    *,
    level: float = 0.95,
    num_draws: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Returns an interval for each score, with confidence `level`.

    Args:
        units: The unit of each example.
    """
    if not 0 < level < 1 or num_draws < 1:
        raise ValueError(
            f"level={level}, num_draws={num_draws}: expected 0 < level < 1 and at least one draw"
        )
    _, unit_of = np.unique(np.asarray(units), return_inverse=True)
    num_units = int(unit_of.max()) + 1
    rng = np.random.default_rng(seed)
    draws: dict[str, list[np.ndarray]] = {}
    for start in range(0, num_draws, _DRAWS_AT_ONCE):
        size = min(_DRAWS_AT_ONCE, num_draws - start)
        counts = rng.multinomial(num_units, np.full(num_units, 1 / num_units), size)
        for name, values in combine(_tallies(columns, counts, unit_of)).items():
            draws.setdefault(name, []).append(values)
    tails = [50 * (1 - level), 50 * (1 + level)]
    found = {}
    for name, parts in draws.items():
        values = np.concatenate(parts)
        # A draw may contain no example of a small column, whose score is then NaN.
        if (values := values[~np.isnan(values)]).size:
            low, high = np.percentile(values, tails)
            found[name] = (float(low), float(high))
    return found


def _tallies(columns: Columns, counts: np.ndarray, unit_of: np.ndarray) -> dict[str, Tally]:
    """Returns tallies of each draw; `counts` is how often units are drawn, [draws, units]."""
    tallies, num_units = {}, counts.shape[1]
    for name, values in columns.items():
        is_part = ~np.isnan(values)
        totals = np.bincount(unit_of[is_part], values[is_part], minlength=num_units)
        numbers = np.bincount(unit_of[is_part], minlength=num_units)
        tallies[name] = Tally(counts @ totals, (counts @ numbers).astype(float))
    return tallies
