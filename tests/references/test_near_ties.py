"""The comparisons in near_ties.py fail on differences that exceed rounding."""

import numpy as np
import pytest
from near_ties import assert_same_answers, assert_same_loads, is_near_tie

# Tokens 1 and 2 have equal scores up to rounding; token 3 has another one.
SCORES = np.array([-np.inf, 1.0, 1.0 + 1e-6, 0.9, -1.0], np.float32)


def answers(*rows):
    return [[1, 1, 1], *rows]


def scores(row, step):
    return SCORES


def test_answers_may_differ_after_a_near_tie():
    assert_same_answers(answers([1, 2, 4]), answers([1, 1, 3]), scores)


@pytest.mark.parametrize("other", [[1, 3, 1], [3, 2, 1], [0, 1, 1]])
def test_answers_that_differ_elsewhere_fail(other):
    with pytest.raises(AssertionError, match="row 1, step"):
        assert_same_answers(answers(other), answers([1, 1, 1]), scores)


def test_near_ties_are_counted():
    two = [[2, 1], [1, 2], [1, 1]], [[1, 1]] * 3
    assert_same_answers(*two, scores, at_most=2)
    with pytest.raises(AssertionError, match=r"rows \[0, 1\] have near ties, of 3"):
        assert_same_answers(*two, scores)


def test_forbidden_tokens_are_not_near_ties():
    assert not is_near_tie(SCORES, 0, 1) and not is_near_tie(SCORES, 0, 0)


def test_moved_expert_choices_are_counted_per_layer():
    load = np.array([[0.25, 0.25, 0.5], [0.5, 0.25, 0.25]])
    moved = load + np.array([[0.01, -0.01, 0], [0.01, 0.01, -0.02]])
    assert_same_loads(moved, load, num_choices=100, at_most=2)
    with pytest.raises(AssertionError, match="moved, by layer: .*1.*2"):
        assert_same_loads(moved, load, num_choices=100, at_most=1)
