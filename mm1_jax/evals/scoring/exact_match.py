"""Exact matches with the single reference of a record, as fractions of 1."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mm1_jax.evals.scoring.items import Item, Scored, of_group
from mm1_jax.evals.scoring.texts import exact_match, normalise

_SHAPES = ("circle", "rectangle", "triangle")


def accuracy(items: Sequence[Item]) -> Scored:
    """Fraction of answers that equal the reference up to case, spacing and a final period."""
    correct = [exact_match(item.text, item.reference) for item in items]
    return Scored(correct, {"accuracy": np.array(correct, float)})


def exact_captions(items: Sequence[Item]) -> Scored:
    """Accuracy under the name `exact_match`."""
    scored = accuracy(items)
    return Scored(scored.correct, {"exact_match": scored.columns["accuracy"]})


def accuracy_by_kind(items: Sequence[Item]) -> Scored:
    """Accuracy over all questions and per `kind` of question.

    `majority_accuracy` is the accuracy without seeing the picture: of always giving the most
    frequent answer to questions of a kind.
    """
    scored = accuracy(items)
    kinds = [item.record["kind"] for item in items]
    references = [normalise(item.reference) for item in items]
    most = {
        kind: Counter(
            text for text, each in zip(references, kinds, strict=True) if each == kind
        ).most_common(1)[0][0]
        for kind in sorted({*kinds})
    }
    majority = [text == most[kind] for text, kind in zip(references, kinds, strict=True)]
    by_kind = {f"accuracy_{kind}": of_group(scored.correct, kinds, kind) for kind in most}
    columns = {**scored.columns, "majority_accuracy": np.array(majority, float), **by_kind}
    return Scored(scored.correct, columns)


def accuracy_by_answer(items: Sequence[Item]) -> Scored:
    """Accuracy over all questions and per kind of answer: yes or no, shape, color."""
    scored = accuracy(items)
    kinds = [_kind(item.reference) for item in items]
    by_kind = {
        f"{kind}_accuracy": of_group(scored.correct, kinds, kind) for kind in sorted({*kinds})
    }
    return Scored(scored.correct, {**scored.columns, **by_kind})


def _kind(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes_no"
    return "shape" if answer in _SHAPES else "colour"


def accuracy_of_names(items: Sequence[Item]) -> Scored:
    """Accuracy, and the fraction of answers that are a name from the exemplars (`heard`)."""
    scored = accuracy(items)
    heard = np.array([normalise(item.text) in item.record["names"] for item in items], float)
    return Scored(scored.correct, {**scored.columns, "heard": heard})
