"""Comparison of texts, and means of scores."""

import math
from collections.abc import Sequence


def normalise(text: str) -> str:
    """Lowercases a text, collapses spaces and strips periods at the end."""
    return " ".join(text.lower().split()).rstrip(" .")


def exact_match(answer: str, reference: str) -> bool:
    """Returns True if answer and reference are equal up to case, spacing and a final period."""
    return normalise(answer) == normalise(reference)


def mean(values: Sequence[bool | float]) -> float:
    """Returns the mean; for booleans, the fraction that is True."""
    if not values:
        raise ValueError("the mean of no values: a benchmark needs at least one example")
    # Rounded once, so that the order of the values does not matter.
    return math.fsum(values) / len(values)
