import pytest

from mm1_jax.evals.metrics.multiple_choice import (
    mmbench_scores,
    option_letter,
    scienceqa_letter,
    seed_scores,
)


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("B. a bird", "B"),
        ("The answer is B.", "B"),
        ("The answer is A. The answer is B.", None),
        ("E", None),
        ("b", None),
        ("B a bird", None),
        ("", None),
    ],
)
def test_scienceqa_takes_three_forms_of_a_reply(reply, letter):
    assert scienceqa_letter(reply, 3) == letter


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("A", "A"),
        (" (B) red", "B"),
        ("B: red", "B"),
        ("Because of its colour, (B)", "B"),
        ("Red.", "B"),
        ("A or B", "A"),
        ("Apples", None),
        ("C", None),
        ("(A) or (B)?", "A"),
        ("either (A) or (B)", None),
    ],
)
def test_an_option_is_chosen_by_letter_or_text(reply, letter):
    assert option_letter(reply, {"A": "a green one", "B": "red"}) == letter


def test_a_question_of_mmbench_must_be_right_in_all_its_rounds():
    rows = {7: True, 1000007: True, 2000007: False, 8: True, 1000008: True, 9: False}
    assert mmbench_scores(rows) == {
        "n_questions": 3,
        "n_rows": 6,
        "circular_acc": pytest.approx(100 / 3),
        "vanilla_acc": pytest.approx(200 / 3),
    }


def test_seed_tells_images_from_videos():
    scores = seed_scores([True, False, False], [1, 9, 10])
    assert scores["acc"] == pytest.approx(100 / 3)
    assert (scores["image_acc"], scores["video_acc"], scores["type_9_acc"]) == (50, 0, 0)
    assert "video_acc" not in seed_scores([True], [2])
