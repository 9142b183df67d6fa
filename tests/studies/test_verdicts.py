"""Intervals are Student's t of paired differences, and verdicts follow from them."""

import numpy as np
import pytest
import scipy.stats

from mm1_jax.studies.results import Row
from mm1_jax.studies.study import Cell, Claim, Score
from mm1_jax.studies.verdicts import Estimate, Verdict, difference, estimate, verdict

A, B = Score("a", "score"), Score("b", "score")


def _rows(a: dict[int, float], b: dict[int, float]) -> dict[Cell, Row]:
    values = {Cell(arm, seed): x for arm, each in (("a", a), ("b", b)) for seed, x in each.items()}
    return {cell: Row(cell, {"score": x}, 1.0, "-") for cell, x in values.items()}


def test_the_difference_is_paired_and_equals_the_interval_of_scipy():
    rng = np.random.default_rng(0)
    seeds = rng.normal(0, 5, 4)
    a, b = seeds + 1 + rng.normal(0, 0.1, 4), seeds
    rows = _rows(dict(enumerate(a)), {**dict(enumerate(b)), 9: 100.0})
    found = difference(rows, A, B)
    low, high = scipy.stats.ttest_rel(a, b).confidence_interval()
    np.testing.assert_allclose(found[:3], [np.mean(a - b), low, high])
    assert found.num_seeds == 4
    assert str(estimate([2.0])) == "2.000 (1 seed)" and str(estimate([])) == "-"


@pytest.mark.parametrize(
    ("low", "high", "alike", "expected"),
    [
        (0.02, 0.2, False, Verdict.REPRODUCED),
        (-0.02, 0.3, False, Verdict.UNDECIDED),
        (0.01, 0.06, False, Verdict.UNDECIDED),  # Above 0, but its mean is below the smallest.
        (-0.2, 0.04, False, Verdict.REFUTED),
        (-np.inf, np.inf, False, Verdict.UNDECIDED),
        (-0.04, 0.04, True, Verdict.REPRODUCED),
        (-0.04, 0.06, True, Verdict.UNDECIDED),
        (0.06, 0.2, True, Verdict.REFUTED),
        (-np.inf, np.inf, True, Verdict.UNDECIDED),
    ],
)
def test_the_verdict_follows_from_the_interval_and_the_smallest_difference(
    low, high, alike, expected
):
    mean = 1.0 if np.isinf(low) else (low + high) / 2
    claim = Claim("a beats b", A, B, 0.05, alike=alike)
    assert verdict(claim, Estimate(mean, low, high, 3)) is expected


def test_a_null_study_is_rarely_decided():
    """Splitting equal runs in two reproduces a claim in at most one of 40 studies."""
    rng = np.random.default_rng(1)
    claim = Claim("a beats b", A, B, 0.05)
    found = [verdict(claim, estimate(rng.normal(0, 0.1, 3).tolist())) for _ in range(2000)]
    assert np.mean([x is Verdict.REPRODUCED for x in found]) < 0.035
    assert np.mean([x is Verdict.UNDECIDED for x in found]) > 0.85
