import pytest

from mm1_jax.evals.answers import TextAnswer
from mm1_jax.evals.scoring.exact_match import accuracy_by_answer
from mm1_jax.evals.scoring.items import Item, scores


def test_accuracy_is_reported_overall_and_per_kind_of_answer():
    answers = [("yes", True), ("no", True), ("no", False), ("circle", False), ("teal", True)]
    items = [Item({}, TextAnswer(text if right else ""), "", text) for text, right in answers]
    assert scores(accuracy_by_answer(items)) == {
        "accuracy": pytest.approx(3 / 5),
        "colour_accuracy": 1.0,
        "shape_accuracy": 0.0,
        "yes_no_accuracy": pytest.approx(2 / 3),
    }
