import json

import pytest

from mm1_jax.evals.scoring.mmmu import chance_option, chosen_option, open_answers, open_correct

OPTIONS = {"A": "$6", "B": "two dogs", "C": "A bird"}


@pytest.mark.parametrize(
    ("reply", "option"),
    [
        ("(B)", "B"),
        ("B", "B"),
        ("Answer: B.", "B"),
        # Letters in brackets count before bare ones, and the last mention wins.
        ("A is wrong, it is (B)", "B"),
        ("(A)? no, (C)", "C"),
        ("A or C then", "C"),
        # An option's text counts in replies of more than five words.
        ("there are clearly two dogs in it", "B"),
        ("two dogs", None),
        ("no idea", None),
        # If mentions of options overlap, the first option wins.
        ("it costs $6 for two dogs here", "B"),
    ],
)
def test_an_option_is_named_by_letter_or_text(reply, option):
    assert chosen_option(reply, OPTIONS) == option


def test_a_random_option_depends_on_the_question_alone_and_covers_all_options():
    drawn = [chance_option(f"validation_Art_{i}", "ABCD") for i in range(200)]
    assert drawn == [chance_option(f"validation_Art_{i}", "ABCD") for i in range(200)]
    assert all(30 < drawn.count(letter) < 70 for letter in "ABCD")


@pytest.mark.parametrize(
    ("reply", "references", "correct"),
    [
        ("The result is 12.345.", ["12.35"], True),
        ("x = 1,000 m", ["1000"], True),
        ("so it is Mitosis", ["mitosis"], True),
        ("A", ["A"], True),
        ("Any", ["A"], False),
        ("24/7", ["24/7", "3.429"], True),
        ("-120", ["120"], False),
        ("It is 3e2", ["300"], True),
    ],
)
def test_open_replies_are_parsed(reply, references, correct):
    assert open_correct(open_answers(reply), references) is correct


def test_replies_are_parsed_as_by_the_official_code(metrics_data):
    wrong = []
    for line in (metrics_data / "mmmu" / "qwen_vl.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["question_type"] != "multiple-choice":
            if set(open_answers(row["response"])) != set(row["official_parsed"]):
                wrong.append(row["id"])
        else:
            option = chosen_option(row["response"], row["index2ans"])
            if option != (None if row["random_choice"] else row["official_parsed"]):
                wrong.append(row["id"])
    assert wrong == []
