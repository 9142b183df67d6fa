import pytest

from mm1_jax.evals.scoring.short_answers import anls, edit_distance, gqa_correct, relaxed_correct


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("a", "b", 1)],
)
def test_edit_distance_is_symmetric(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


def test_anls_is_the_best_similarity_or_zero_below_one_half():
    assert anls(" The  Answer ", ["x", "the answer"]) == 1
    assert anls("abcd", ["abce"]) == 0.75
    assert anls("ab", ["ax"]) == 0.5
    assert anls("abc", ["axy"]) == 0
    # The similarity is 4/9.
    assert anls("abcdefghi", ["abcdvwxyz"]) == 0
    # Lengths are those of the compared texts, without surrounding spaces.
    assert anls("abcd      ", ["abce"]) == 0.75


@pytest.mark.parametrize(
    ("answer", "reference", "correct"),
    [
        ("105", "100", True),
        ("94.9", "100", False),
        ("0.5", "50%", True),
        ("52%", "50%", True),
        ("-100", "-104", True),
        ("Yes", "yes", True),
        ("0", "0", True),
        ("0.0", "0", False),
        ("0.04", "0", False),
        ("about 100", "100", False),
    ],
)
def test_numbers_may_be_off_by_five_percent(answer, reference, correct):
    assert relaxed_correct(answer, reference) is correct


def test_gqa_answers_ignore_case_and_a_final_period():
    assert gqa_correct("Left.", "left")
    assert not gqa_correct("the left", "left")
