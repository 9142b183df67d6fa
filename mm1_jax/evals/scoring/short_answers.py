"""Scores of short answers: GQA, documents (ANLS) and charts (relaxed accuracy)."""

from collections.abc import Callable, Sequence

import numpy as np

from mm1_jax.evals.scoring.items import Item, Scored, percentages

ANLS_THRESHOLD = 0.5
RELAXED_TOLERANCE = 0.05


def gqa(items: Sequence[Item]) -> Scored:
    """Accuracy in percent; the bootstrap draws all questions about a picture together."""
    correct = [gqa_correct(item.text, item.record["answers"][0]) for item in items]
    return Scored(
        correct=correct,
        columns={"acc": np.array(correct, float)},
        combine=percentages,
        units=[item.record.get("image", item.key) for item in items],
    )


def documents(items: Sequence[Item]) -> Scored:
    """Mean ANLS in percent."""
    return _mean("anls", items, lambda item: anls(item.text, item.record["answers"]))


def charts(items: Sequence[Item]) -> Scored:
    """Relaxed accuracy in percent."""

    def right(item: Item) -> float:
        return float(relaxed_correct(item.text, item.record["answers"][0]))

    return _mean("relaxed_acc", items, right)


def _mean(name: str, items: Sequence[Item], rule: Callable[[Item], float]) -> Scored:
    values = np.array([rule(item) for item in items], float)
    return Scored((values >= 0.5).tolist(), {name: values}, percentages)


def gqa_correct(answer: str, reference: str) -> bool:
    """Returns True if the answers are equal up to case and a final period."""
    return _gqa(answer) == _gqa(reference)


def _gqa(text: str) -> str:
    return text.strip().lower().removesuffix(".").strip()


def anls(answer: str, references: Sequence[str]) -> float:
    """Average normalized Levenshtein similarity of one answer, 0 to 1 (Biten et al., 2019).

    The similarity is 1 - distance / length of the longer text, lowercased and with single spaces.
    Returns the largest similarity to a reference, or 0 if that is below 0.5.
    """
    best = max((_similarity(_spaced(answer), _spaced(other)) for other in references), default=0.0)
    return best if best >= ANLS_THRESHOLD else 0.0


def _spaced(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(a: str, b: str) -> float:
    longer = max(len(a), len(b))
    return 1 - edit_distance(a, b) / longer if longer else 1.0


def edit_distance(a: str, b: str) -> int:
    """Returns the Levenshtein distance in characters."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        before, row = row, [i + 1]
        for j, y in enumerate(b):
            row.append(min(before[j] + (x != y), before[j + 1] + 1, row[j] + 1))
    return row[-1]


def relaxed_correct(answer: str, reference: str) -> bool:
    """Returns True if a number is within 5% of the reference, or a text equals it up to case.

    Follows ChartQA (Masry et al., 2022). A number with "%" is divided by 100. A reference of 0 is
    compared as text, since 5% of it is 0.
    """
    value, target = _number(answer), _number(reference)
    if value is not None and target:
        return abs(value - target) / abs(target) <= RELAXED_TOLERANCE
    return answer.strip().lower() == reference.strip().lower()


def _number(text: str) -> float | None:
    text = text.strip()
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
