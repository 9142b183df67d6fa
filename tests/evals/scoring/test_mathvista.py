import json

import pytest

from mm1_jax.evals.scoring.mathvista import extracted_by_rule, normalised_answer

CHOICES = ["135\u00b0", "140\u00b0", "145\u00b0"]


@pytest.mark.parametrize(
    ("extraction", "answer"),
    [
        ("C", "145\u00b0"),
        ("(b)", "140\u00b0"),
        ("145", "145\u00b0"),
        ("D", "135\u00b0"),
        ("", "135\u00b0"),
    ],
)
def test_a_choice_is_found_by_letter_or_by_the_least_edit_distance(extraction, answer):
    got = normalised_answer(extraction, choices=CHOICES, answer_type="text", precision=None)
    assert got == answer


@pytest.mark.parametrize(
    ("extraction", "answer_type", "precision", "answer"),
    [
        ("12.7", "integer", None, "12"),
        ("1.26", "float", 1, "1.3"),
        ("1", "float", 2, "1.0"),
        ("one", "integer", None, None),
        ("inf", "integer", None, None),
        ("[1, 2]", "list", None, "[1, 2]"),
    ],
)
def test_numbers_are_converted_to_the_format_of_the_reference(
    extraction, answer_type, precision, answer
):
    got = normalised_answer(extraction, choices=None, answer_type=answer_type, precision=precision)
    assert got == answer


def test_rules_extract_answers_without_a_language_model():
    assert extracted_by_rule('I think. The answer is "7".', None, "integer") == "7"
    assert extracted_by_rule("From (A) it follows: (C)", CHOICES, "text") == "(C)"
    assert (
        extracted_by_rule("135\u00b0 is too small, so 140\u00b0 it is", CHOICES, "text")
        == "140\u00b0"
    )
    assert extracted_by_rule("1,200 and 3, in all 1,203.", None, "integer") == "1203"
    assert extracted_by_rule("none at all", None, "float") == ""


def test_extractions_are_normalized_as_by_the_official_code(metrics_data):
    lines = (metrics_data / "mathvista" / "llava_llama_2_13b.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    got = [
        normalised_answer(
            row["extraction"],
            choices=row["choices"],
            answer_type=row["answer_type"],
            precision=row["precision"],
        )
        for row in rows
    ]
    assert got == [row["official_prediction"] for row in rows]
