"""Differences paired by seed, their 95% intervals, and the verdict on a claim."""

import enum
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from mm1_jax.studies.results import Row
from mm1_jax.studies.study import Cell, Claim, Score


class Verdict(enum.Enum):
    """The outcome of a claim."""

    REPRODUCED = "reproduced"
    REFUTED = "refuted"
    UNDECIDED = "undecided"


class Estimate(NamedTuple):
    """Mean over seeds with the 95% interval of Student's t, infinite for a single seed."""

    mean: float
    low: float
    high: float
    num_seeds: int

    def __str__(self) -> str:
        if not self.num_seeds:
            return "-"
        if math.isinf(self.low):
            return f"{self.mean:.3f} (1 seed)"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(values: Sequence[float]) -> Estimate:
    """Returns the mean of values with its interval."""
    x = np.array(values, float)
    if not len(x):
        return Estimate(math.nan, -math.inf, math.inf, 0)
    mean = float(x.mean())
    if len(x) == 1:
        return Estimate(mean, -math.inf, math.inf, 1)
    half = scipy.stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return Estimate(mean, mean - float(half), mean + float(half), len(x))


def scores(rows: Mapping[Cell, Row], score: Score) -> dict[int, float]:
    """Returns a score by seed."""
    return {
        cell.seed: row.metrics[score.metric] for cell, row in rows.items() if cell.arm == score.arm
    }


def difference(rows: Mapping[Cell, Row], one: Score, other: Score) -> Estimate:
    """Returns `one` minus `other`, paired by seed; seeds that lack either are left out."""
    first, second = scores(rows, one), scores(rows, other)
    return estimate([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())])


def verdict(claim: Claim, found: Estimate) -> Verdict:
    """Returns the verdict on a claim by the difference that was found.

    A difference is reproduced if its interval is above 0 and its mean is at least the smallest of
    interest, and refuted if the whole interval is below the smallest of interest. Likeness is
    reproduced if the whole interval is within the smallest of interest, and refuted if all of it is
    outside. An infinite interval decides nothing.
    """
    least = claim.smallest
    if claim.alike:
        if -least < found.low and found.high < least:
            return Verdict.REPRODUCED
        is_outside = found.low > least or found.high < -least
        return Verdict.REFUTED if is_outside else Verdict.UNDECIDED
    if found.low > 0 and found.mean >= least:
        return Verdict.REPRODUCED
    return Verdict.REFUTED if found.high < least else Verdict.UNDECIDED
