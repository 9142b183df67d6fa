import pytest

from mm1_jax.evals.scoring.vqa import (
    OkVqaStemmer,
    agreement,
    agreement_without_ids,
    evalai,
    lowered,
    official_accuracy,
    plain_words,
    processed_accuracy,
    without_punctuation,
)


@pytest.mark.parametrize(("count", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0)])
def test_the_score_of_an_answer_grows_with_its_share_of_ten_people(count, accuracy):
    answers = ["red"] * count + [f"other {i}" for i in range(10 - count)]
    assert agreement("red", answers) == pytest.approx(accuracy)


def test_without_ids_equal_answers_are_left_out_together():
    answers = ["red"] * 4 + ["blue"] * 6
    # Equal answers are left out together, so no "red" remains.
    assert agreement_without_ids("red", answers, [None] * 10) == pytest.approx(0.6)
    assert agreement("red", answers) == 1.0
    # Answers of people with different confidence are distinct.
    assert agreement_without_ids("red", answers, list(range(10))) == 1.0


def test_the_official_code_normalizes_only_if_people_disagree():
    assert official_accuracy("Dakota", ["dakota"] * 10) == 0
    assert official_accuracy("Dakota", ["dakota"] * 9 + ["other"]) == 1
    assert official_accuracy(lowered("Dakota."), ["dakota"] * 10) == 1
    assert official_accuracy("one pound", ["1 pound"] * 5 + ["a pound"] * 5) == 1
    # Surrounding spaces do not count as disagreement.
    assert official_accuracy("Dakota", ["dakota"] * 9 + ["dakota "]) == 0


def test_the_default_mode_processes_answers_and_references():
    assert processed_accuracy("The Dog.", ["dog"] * 10) == 1
    assert processed_accuracy("two", ["2"] * 10) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b", "a b"),
        ("a /b", "a b"),
        # If the text has a number with a comma, punctuation is removed without adding a space.
        ("1,000-x", "1000x"),
        ("end.", "end"),
        ("2.5", "2.5"),
        # The official expression also removes a period after a digit, unless a digit follows.
        ("no. 5.", "no 5"),
        ("." * 40, "." * 8),
    ],
)
def test_punctuation_is_removed_as_by_the_official_code(text, expected):
    assert without_punctuation(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Ten an a", "10"),
        ("none", "0"),
        ("dont wont couldnt've", "don't won't couldn't've"),
        ("he'dve hes its", "he'd've he's its"),
        ("somebody'd", "somebodyd"),
    ],
)
def test_numbers_articles_and_contractions_are_normalized(text, expected):
    assert plain_words(text) == expected


def test_evalai_removes_commas_and_splits_possessives():
    assert evalai("The dog's, 1,000 Cats?\n") == "dog 's 1000 cats"


def test_ok_vqa_stems_follow_rules():
    text = "Surfing riding running skateboarding dogs berries dishes glass tennis"
    assert OkVqaStemmer()(text) == "surf ride run skateboard dog berry dish glass tennis"
    assert OkVqaStemmer()("king string sitting dancing selling") == "king string sit dance sell"


def test_stems_are_learned_from_annotations_with_both_forms():
    stems = OkVqaStemmer.learn(
        [("hot dogs", "hot dog"), ("dogs", "dogge"), ("Dogs", "dog"), ("one two", "one")]
    )
    assert stems == {"hot": "hot", "dogs": "dog"}
    assert OkVqaStemmer({"dogs": "hound"})("dogs cats") == "hound cat"
