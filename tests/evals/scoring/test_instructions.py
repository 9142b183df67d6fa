"""Right answers and right forms of answers are counted apart."""

import pytest

from mm1_jax.evals.answers import TextAnswer
from mm1_jax.evals.scoring.instructions import instructions, is_well_formed
from mm1_jax.evals.scoring.items import Item, scores

FIELDS = {"letter": {"options": ["red", "blue"]}, "json": {"keys": ["color", "count"]}}
REFERENCES = {"json": '{"color": "red", "count": 2}', "box": "[0, 0, 10, 10]"}


def item(form: str, answer: str, reference: str | None = None) -> Item:
    reference = REFERENCES.get(form, answer) if reference is None else reference
    return Item({"form": form, **FIELDS.get(form, {})}, TextAnswer(answer), reference=reference)


@pytest.mark.parametrize(
    ("form", "right", "wrong"),
    [
        ("short_answer", ["red", "two circles", "Left."], ["", "It is red.", "a b c d e", "a\nb"]),
        ("letter", ["A", "B.", " A "], ["C", "a", "A. red", "red", ""]),
        ("yes_no", ["yes", "No", "yes."], ["maybe", "yes it is", "", "y"]),
        ("sentence", ["It is red.", "Is it 3?"], ["red", "it is red.", "It is. So.", "Red."]),
        (
            "json",
            ['{"color": "blue", "count": 3}', '{"count": 1, "color": ""}'],
            ['{"color": "red"}', "red", "{'color': 1, 'count': 1}", '["color", "count"]', "{"],
        ),
        ("box", ["[1, 2, 3, 4]", "[1,2,3,4]"], ["[1, 2, 3]", "1, 2, 3, 4", "[3, 2, 1, 4]", "left"]),
    ],
)
def test_forms_of_answers(form, right, wrong):
    for answer in right:
        assert is_well_formed(item(form, answer)), answer
    for answer in wrong:
        assert not is_well_formed(item(form, answer)), answer


def test_a_text_only_reply_has_the_form_of_its_reference():
    assert is_well_formed(item("text", "Two plus one is four.", "Two plus one is three."))
    assert not is_well_formed(item("text", "three", "Two plus one is three."))
    assert is_well_formed(item("text", "four", "three"))


def test_right_answers_and_forms_are_scored_apart_and_per_form():
    found = scores(
        instructions(
            [
                item("yes_no", "yes", "no"),
                item("yes_no", "no", "no"),
                item("json", '{"count": 2, "color": "red"}'),
                item("json", "red, 2"),
                item("box", "[0, 0, 10, 9]"),
                item("box", "[0, 0, 10, 2]"),
            ]
        )
    )
    assert found == pytest.approx(
        {
            "accuracy": 3 / 6,
            "well_formed": 5 / 6,
            "accuracy_yes_no": 1 / 2,
            "well_formed_yes_no": 1,
            "accuracy_json": 1 / 2,
            "well_formed_json": 1 / 2,
            "accuracy_box": 1 / 2,
            "well_formed_box": 1,
            "mean_iou": (0.9 + 0.2) / 2,
        }
    )
