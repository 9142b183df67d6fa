import pytest

from mm1_jax.batch import Document
from mm1_jax.evals.benchmarks.base import Task, Verdict
from mm1_jax.evals.benchmarks.easy_vqa import EasyVQA


def test_accuracy_is_of_all_questions_and_of_each_kind_of_answer():
    answers = [("yes", True), ("no", True), ("no", False), ("circle", False), ("teal", True)]
    task = Task({}, Document(()), (), Document(()))
    verdicts = [Verdict(task, "", text, correct) for text, correct in answers]
    score = object.__new__(EasyVQA).score(verdicts)
    assert score == {
        "accuracy": pytest.approx(3 / 5),
        "colour_accuracy": 1.0,
        "shape_accuracy": 0.0,
        "yes_no_accuracy": pytest.approx(2 / 3),
    }
