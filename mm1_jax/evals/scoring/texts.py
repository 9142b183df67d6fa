"""Comparison of texts, and their means."""

import math
from collections.abc import Sequence


def normalise(text: str) -> str:
    """Lower case, single spaces, no full stop at the end."""
    return " ".join(text.lower().split()).rstrip(" .")


def exact_match(answer: str, reference: str) -> bool:
    """Returns True if answer and reference agree up to case, spacing and a final full stop."""
    return normalise(answer) == normalise(reference)


def mean(values: Sequence[bool | float]) -> float:
    """The mean, as a share of 1 for truth values."""
    if not values:
        raise ValueError("the mean of no values: a benchmark needs at least one example")
    # Rounded once, so that the order of the values does not matter.
    return math.fsum(values) / len(values)
