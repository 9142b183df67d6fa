import json
import math

import pytest
from etils import epath

from mm1_jax.checkpoints.best_checkpoint import BestCheckpoint

METRIC = "held_out_loss/0/text"


@pytest.fixture
def open_best(tmp_path):
    def make(metric=METRIC, mode="min", report=print):
        return BestCheckpoint(epath.Path(tmp_path), metric=metric, mode=mode, report=report)

    return make


@pytest.mark.parametrize(("mode", "best_step"), [("min", 4), ("max", 6)])
def test_the_best_step_follows_the_metric_across_launches(open_best, mode, best_step):
    best = open_best(mode=mode)
    assert best.step is None
    values = {2: 3.0, 4: 2.0, 6: 4.0, 8: 2.5}
    is_best = {
        step: best.record_metrics(step, {METRIC: value, "other": 0})
        for step, value in values.items()
    }
    assert is_best == {2: True, 4: mode == "min", 6: mode == "max", 8: False}
    again = open_best(mode=mode)
    assert again.step == best.step == best_step
    # An equal value is not better.
    assert not again.record_metrics(10, {METRIC: values[best_step]})


def test_missing_or_non_finite_values_are_never_the_best(open_best, tmp_path):
    best = open_best()
    assert not best.record_metrics(2, {})
    assert not best.record_metrics(2, {METRIC: math.nan})
    assert not open_best(metric=None).record_metrics(2, {METRIC: 1.0})
    assert list(tmp_path.iterdir()) == []


def test_the_best_of_another_metric_is_ignored(open_best):
    assert open_best().record_metrics(2, {METRIC: 1.0})
    other = open_best(metric="quiz/0/accuracy")
    assert other.step == 2
    assert other.record_metrics(4, {"quiz/0/accuracy": 5.0}) and other.step == 4


def test_a_damaged_file_is_reported_and_ignored(open_best, tmp_path):
    for text in ("{", "[]", json.dumps({"step": "x", "metric": METRIC, "value": 1})):
        (tmp_path / "best.json").write_text(text)
        told = []
        assert open_best(report=told.append).step is None
        assert str(tmp_path / "best.json") in told[0] and "damaged" in told[0], text
