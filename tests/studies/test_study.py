"""Metrics of a study."""

import pytest

from mm1_jax.studies.study import Metric


def test_a_metric_is_the_mean_of_its_keys_minus_that_of_others():
    report = {"a/8": 0.5, "b/8": 0.7, "a/0": 0.1, "b/0": 0.3}
    assert Metric("shots_8", ("a/8", "b/8")).value(report) == pytest.approx(0.6)
    gain = Metric("gain", ("a/8", "b/8"), minus=("a/0", "b/0"))
    assert gain.value(report) == pytest.approx(0.4)
    del report["b/0"]
    with pytest.raises(ValueError, match="no b/0 for the metric 'gain'"):
        gain.value(report)
