"""Scores of yes-no questions: POPE and MME, each reading replies by its official rule."""

from collections.abc import Mapping, Sequence

import numpy as np

from mm1_jax.evals.scoring.items import Item, Scored, Tally, of_group

POPE_COUNTS = ("TP", "FP", "TN", "FN")
POPE_SCORES = ("accuracy", "precision", "recall", "f1", "yes_ratio")
# The subtasks of the two halves of MME.
MME_PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark"),
    *("artwork", "OCR"),
)
MME_COGNITION = (
    *("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
)


def pope_says_yes(reply: str) -> bool:
    """Returns True if the first sentence has none of the words "No", "no" and "not"."""
    words = reply.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def pope(items: Sequence[Item]) -> Scored:
    """Scores of each part as fractions of 1, and their means over the parts.

    `yes_ratio` is the fraction of replies that are yes; half of the labels are. The columns are the
    counts `TP`, `FP`, `TN` and `FN`, prefixed with the `part` of the records if there is one.
    """
    said = np.array([pope_says_yes(item.text) for item in items])
    is_yes = np.array([item.record["answer"] == "yes" for item in items])
    parts = [_prefix(item.record.get("part", "")) for item in items]
    outcomes = (said & is_yes, said & ~is_yes, ~said & ~is_yes, ~said & is_yes)
    return Scored(
        correct=(said == is_yes).tolist(),
        columns={
            f"{part}{name}": of_group(outcome, parts, part)
            for part in sorted({*parts})
            for name, outcome in zip(POPE_COUNTS, outcomes, strict=True)
        },
        combine=_pope_scores,
        # The questions about a picture are not independent.
        units=[item.record.get("image", item.key) for item in items],
    )


def _prefix(part: str) -> str:
    return f"{part}_" if part else ""


def _pope_scores(tallies: Mapping[str, Tally]) -> dict[str, np.ndarray]:
    parts = [name.removesuffix("TP") for name in tallies if name.endswith("TP")]
    by_part = {}
    for part in parts:
        TP, FP, TN, FN = (tallies[f"{part}{name}"].total for name in POPE_COUNTS)
        number = tallies[f"{part}TP"].number
        precision, recall = _share(TP, TP + FP, number), _share(TP, TP + FN, number)
        values = (
            _share(TP + TN, number, number),
            precision,
            recall,
            _share(2 * precision * recall, precision + recall, number),
            _share(TP + FP, number, number),
        )
        by_part |= {f"{part}{name}": x for name, x in zip(POPE_SCORES, values, strict=True)}
    overall = {
        name: np.mean([by_part[f"{part}{name}"] for part in parts], axis=0) for name in POPE_SCORES
    }
    return overall | by_part


def _share(part: np.ndarray, whole: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Returns part / whole; 0 if the whole is 0, as in the official code; NaN without examples."""
    nothing = whole == 0
    share = np.where(nothing, 0.0, part / np.where(nothing, 1.0, whole))
    return np.where(number > 0, share, np.nan)


def mme_reply(reply: str) -> str:
    """Returns "yes", "no" or "other"; a longer reply counts by its first four characters."""
    reply = reply.lower()
    if reply in ("yes", "no"):
        return reply
    return next((word for word in ("yes", "no") if word in reply[:4]), "other")


def mme(items: Sequence[Item]) -> Scored:
    """Scores of the subtasks, and the sum of each half if all of its subtasks are present."""
    correct = [mme_reply(item.text) == item.record["answer"].lower() for item in items]
    units = [f"{item.record['subtask']}/{item.record['image']}" for item in items]
    both: dict[str, bool] = {}
    for unit, value in zip(units, correct, strict=True):
        both[unit] = both.get(unit, True) and value
    # A picture counts once, with its first question.
    firsts = [item.record["is_first"] for item in items]
    plus = np.where(firsts, [both[unit] for unit in units], np.nan)
    subtasks = [item.record["subtask"] for item in items]
    columns = {}
    for name in sorted({*subtasks}):
        columns[f"{name}_acc"] = of_group(correct, subtasks, name)
        columns[f"{name}_acc_plus"] = of_group(plus, subtasks, name)
    return Scored(correct, columns, _mme_scores, units)


def _mme_scores(tallies: Mapping[str, Tally]) -> dict[str, np.ndarray]:
    scores = {name: each["score"] for name, each in mme_subtasks(tallies).items()}
    halves = {"Perception": MME_PERCEPTION, "Cognition": MME_COGNITION}
    sums = {
        half: sum((scores[name] for name in names), np.zeros(1))
        for half, names in halves.items()
        if {*names} <= {*scores}
    }
    return sums | scores


def mme_subtasks(tallies: Mapping[str, Tally]) -> dict[str, dict[str, np.ndarray]]:
    """Returns percentages per subtask.

    `acc` is over questions, `acc_plus` over images with both questions right; `score` is their sum.
    """
    found = {}
    for name in (name.removesuffix("_acc") for name in tallies if name.endswith("_acc")):
        acc, plus = (_percentage(tallies[f"{name}_{each}"]) for each in ("acc", "acc_plus"))
        found[name] = {"score": acc + plus, "acc": acc, "acc_plus": plus}
    return found


def _percentage(tally: Tally) -> np.ndarray:
    return Tally(100 * tally.total, tally.number).mean
