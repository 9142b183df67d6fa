import pytest

from mm1_jax.evals.answers import TextAnswer
from mm1_jax.evals.scoring.items import Item, scores
from mm1_jax.evals.scoring.yes_no import mme, mme_reply, pope, pope_says_yes


@pytest.mark.parametrize(
    ("reply", "yes"),
    [
        ("Yes", True),
        ("No, there is none.", False),
        ("There is not", False),
        # Only whole words of the first sentence count.
        ("Nothing here. No", True),
        ("NO", True),
    ],
)
def test_pope_looks_for_three_words(reply, yes):
    assert pope_says_yes(reply) is yes


def pope_scores(says_yes, is_yes) -> dict[str, float]:
    items = [
        Item({"answer": "yes" if label else "no"}, TextAnswer("Yes" if said else "No"))
        for said, label in zip(says_yes, is_yes, strict=True)
    ]
    return scores(pope(items))


def test_pope_scores_equal_a_hand_computed_example():
    items = zip(("Yes", "Yes", "No", "No"), ("yes", "no", "yes", "no"), strict=True)
    scored = pope([Item({"answer": label}, TextAnswer(said)) for said, label in items])
    counts = {name: values.sum() for name, values in scored.columns.items()}
    assert counts == {"TP": 1, "FP": 1, "TN": 1, "FN": 1}
    assert scores(scored) == {
        **{"accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5, "yes_ratio": 0.5}
    }
    # The ratio of "yes" is among replies, not labels.
    assert pope_scores([False] * 4, [True, False] * 2)["yes_ratio"] == 0


def test_pope_averages_its_parts():
    def items(part: str, said: tuple[str, ...], labels: tuple[str, ...]) -> list[Item]:
        return [
            Item({"part": part, "answer": label, "image": "x"}, TextAnswer(text))
            for text, label in zip(said, labels, strict=True)
        ]

    found = scores(
        pope(
            [
                *items("random", ("Yes",) * 4, ("yes", "yes", "no", "no")),
                *items("popular", ("Yes", "No", "No", "No"), ("yes",) * 4),
                *items("adversarial", ("yes", "no"), ("yes", "no")),
            ]
        )
    )
    assert found["random_precision"] == 0.5 and found["random_recall"] == 1.0
    assert found["random_f1"] == pytest.approx(2 / 3) and found["random_yes_ratio"] == 1.0
    assert found["popular_f1"] == pytest.approx(0.4)
    assert found["f1"] == pytest.approx((2 / 3 + 0.4 + 1) / 3)


@pytest.mark.parametrize(
    ("reply", "said"),
    [("YES", "yes"), ("No.", "no"), ("It is no", "other"), ("a yes", "other"), (" yes", "yes")],
)
def test_mme_reads_four_characters(reply, said):
    assert mme_reply(reply) == said


def test_mme_adds_the_accuracies_of_questions_and_images():
    said = {"a": ("Yes", "No"), "b": ("Yes", "Yes")}
    items = [
        Item(
            {"subtask": "OCR", "image": image, "answer": label, "is_first": label == "Yes"},
            TextAnswer(text),
        )
        for image, texts in said.items()
        for text, label in zip(texts, ("Yes", "No"), strict=True)
    ]
    # 75 of the questions and 50 of the images.
    assert scores(mme(items)) == {"OCR": 125.0}
