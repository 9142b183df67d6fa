import pytest

from mm1_jax.evals.scoring.texts import exact_match, mean


@pytest.mark.parametrize(
    ("answer", "reference", "equal"),
    [
        ("7", "7", True),
        ("17", "7", False),
        ("7", "17", False),
        ("Two  Red circles.", "two red circles", True),
        ("two red circles and", "two red circles", False),
        ("", "7", False),
    ],
)
def test_exact_match_ignores_case_spacing_and_a_final_period(answer, reference, equal):
    assert exact_match(answer, reference) is equal


def test_mean_is_a_share_and_rejects_an_empty_list():
    assert mean([True, False, False, True]) == 0.5
    with pytest.raises(ValueError, match="no values"):
        mean([])
