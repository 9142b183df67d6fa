import numpy as np
import pytest

from mm1_jax.evals.scoring.bootstrap import intervals
from mm1_jax.evals.scoring.items import Scored, means, scores


def test_means_are_over_the_examples_of_a_column():
    columns = {"a": np.array([1.0, np.nan, 3.0]), "none": np.full(3, np.nan)}
    assert scores(Scored([True] * 3, columns)) == {"a": 2.0}


def test_the_interval_of_a_proportion_agrees_with_theory():
    """The normal approximation: 1.96 standard errors to each side."""
    values = np.repeat([0.0, 1.0], [600, 1400])
    found = intervals({"x": values}, [str(i) for i in range(2000)], means, num_draws=4000)
    error = 1.96 * np.sqrt(0.7 * 0.3 / 2000)
    np.testing.assert_allclose(found["x"], (0.7 - error, 0.7 + error), atol=2e-3)


def test_examples_of_a_unit_are_drawn_together():
    """Ten copies of each example hold no more information, so the interval is as wide."""
    values = np.repeat([0.0, 1.0], [100, 100])
    single = intervals({"x": values}, [str(i) for i in range(200)], means)
    copies = np.repeat(values, 10)
    together = intervals({"x": copies}, [str(i // 10) for i in range(2000)], means)
    apart = intervals({"x": copies}, [str(i) for i in range(2000)], means)

    def width(found):
        return found["x"][1] - found["x"][0]

    assert width(together) == pytest.approx(width(single), rel=0.1)
    assert width(apart) < width(single) / 2.5


def test_scores_derived_from_means_are_recomputed_in_every_draw():
    rng = np.random.default_rng(0)
    columns = {"part": rng.random(50), "whole": 2 + rng.random(50)}
    units = [str(i) for i in range(50)]
    found = intervals(columns, units, lambda t: {"ratio": t["part"].mean / t["whole"].mean})
    ratio = columns["part"].mean() / columns["whole"].mean()
    assert found["ratio"][0] < ratio < found["ratio"][1]
    assert found == intervals(columns, units, lambda t: {"ratio": t["part"].mean / t["whole"].mean})


@pytest.mark.parametrize("options", [{"level": 1.0}, {"num_draws": 0}])
def test_invalid_options_are_rejected(options):
    with pytest.raises(ValueError, match="expected 0 < level < 1"):
        intervals({"x": np.ones(2)}, ["a", "b"], means, **options)
