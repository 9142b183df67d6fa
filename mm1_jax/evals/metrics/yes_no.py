"""Scores of yes-no questions: POPE and MME, each by the official way of reading a reply."""

from collections.abc import Mapping, Sequence

# The subtasks of MME's two halves.
MME_PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark"),
    *("artwork", "OCR"),
)
MME_COGNITION = (
    *("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
)


def pope_says_yes(reply: str) -> bool:
    """Whether the first sentence has none of the words "No", "no" and "not"."""
    words = reply.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def pope_scores(says_yes: Sequence[bool], is_yes: Sequence[bool]) -> dict[str, int | float]:
    """Counts, and accuracy, precision, recall and F1 of "yes", as shares of 1.

    `yes_ratio` is of the replies; half of the labels are yes.
    """
    pairs = list(zip(says_yes, is_yes, strict=True))
    true_positive = sum(said and label for said, label in pairs)
    false_positive = sum(said and not label for said, label in pairs)
    true_negative = sum(not said and not label for said, label in pairs)
    false_negative = sum(not said and label for said, label in pairs)
    precision = _share(true_positive, true_positive + false_positive)
    recall = _share(true_positive, true_positive + false_negative)
    return {
        "n": len(pairs),
        "TP": true_positive,
        "FP": false_positive,
        "TN": true_negative,
        "FN": false_negative,
        "accuracy": _share(true_positive + true_negative, len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall),
        "yes_ratio": _share(true_positive + false_positive, len(pairs)),
    }


def _share(part: int | float, whole: int | float) -> float:
    return part / whole if whole else 0.0


def mme_reply(reply: str) -> str:
    """ "yes", "no" or "other": of a longer reply, only the first four characters are looked at."""
    reply = reply.lower()
    if reply in ("yes", "no"):
        return reply
    return next((word for word in ("yes", "no") if word in reply[:4]), "other")


def mme_scores(correct: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    """The scores of a subtask from the verdicts on the two questions of each image.

    Percentages: `acc` of questions, `acc_plus` of images with both right; `score` is their sum.
    """
    verdicts = [verdict for pair in correct.values() for verdict in pair]
    acc = 100 * sum(verdicts) / len(verdicts)
    acc_plus = 100 * sum(all(pair) for pair in correct.values()) / len(correct)
    return {"score": acc + acc_plus, "acc": acc, "acc_plus": acc_plus}
