import pytest

from mm1_jax.evals.metrics.yes_no import mme_reply, mme_scores, pope_says_yes, pope_scores


@pytest.mark.parametrize(
    ("reply", "yes"),
    [
        ("Yes", True),
        ("No, there is none.", False),
        ("There is not", False),
        # Whole words, of the first sentence alone.
        ("Nothing here. No", True),
        ("NO", True),
    ],
)
def test_pope_looks_for_three_words(reply, yes):
    assert pope_says_yes(reply) is yes


def test_pope_scores_by_hand():
    scores = pope_scores([True, True, False, False], [True, False, True, False])
    assert scores == {
        **{"n": 4, "TP": 1, "FP": 1, "TN": 1, "FN": 1},
        **{"accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5, "yes_ratio": 0.5},
    }
    # The ratio is of the replies, not of the labels.
    assert pope_scores([False] * 4, [True, False] * 2)["yes_ratio"] == 0


@pytest.mark.parametrize(
    ("reply", "said"),
    [("YES", "yes"), ("No.", "no"), ("It is no", "other"), ("a yes", "other"), (" yes", "yes")],
)
def test_mme_reads_four_characters(reply, said):
    assert mme_reply(reply) == said


def test_mme_adds_questions_and_images():
    scores = mme_scores({"a": [True, True], "b": [True, False]})
    assert scores == {"score": 125.0, "acc": 75.0, "acc_plus": 50.0}
