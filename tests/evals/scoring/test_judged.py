import pytest

from mm1_jax.evals.scoring.judged import llava_bench_scores, mmvet_scores, review_grades


def test_grades_are_read_from_the_first_line_of_a_review():
    assert review_grades("8, 7.5\nBoth are good.") == (8.0, 7.5)
    with pytest.raises(ValueError, match="two grades"):
        review_grades("Assistant 1 is better")


def test_llava_bench_compares_means_and_rounds_like_the_official_summary():
    scores = llava_bench_scores({"conv": [(8.0, 6.0), (9.0, 9.0)], "detail": [(7.0, 3.0)]})
    assert scores["conv"] == {"relative": 88.2, "gpt4": 85.0, "model": 75.0}
    assert scores["all"] == {"relative": 75.0, "gpt4": 80.0, "model": 60.0}


def test_mmvet_is_the_mean_grade_per_run():
    scores = mmvet_scores([[1.0, 0.5], [0.0, 0.0]], [["ocr", "math"], ["ocr"]])
    assert scores["runs"] == [50.0, 25.0]
    assert (scores["total"], scores["std"]) == (37.5, 12.5)
    assert scores["capabilities"] == {"math": 75.0, "ocr": 37.5}
