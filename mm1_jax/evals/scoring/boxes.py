"""Scores of boxes and points that a model writes as text, as fractions of 1.

Answers and references are compared as written, so the same functions score every convention: the
unit of coordinates does not change how two boxes overlap. A box that is not written like the
reference counts as wrong, as does a point that is not two numbers; `well_formed` is the fraction of
all other answers.
"""

import re
from collections.abc import Sequence

import numpy as np

from mm1_jax.data.grounding import iou, is_inside
from mm1_jax.evals.scoring.items import Item, Scored

# IoU from which a box is right, as in RefCOCO.
IOU_THRESHOLD = 0.5
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def box_accuracy(items: Sequence[Item]) -> Scored:
    """Fraction of boxes whose IoU with the reference is at least 0.5, and the mean IoU."""
    overlaps = [_iou(item.text, item.reference) for item in items]
    values = np.array([value or 0.0 for value in overlaps])
    correct = values >= IOU_THRESHOLD
    columns = {
        "accuracy": correct.astype(float),
        "mean_iou": values,
        "well_formed": np.array([value is not None for value in overlaps], float),
    }
    return Scored(correct.tolist(), columns, quality=values)


def point_accuracy(items: Sequence[Item]) -> Scored:
    """Fraction of points inside of the box that the reference states, in the same convention."""
    found = [(_numbers(item.text), _numbers(item.reference)) for item in items]
    well_formed = [len(point) == 2 for point, _ in found]
    correct = [
        is_point and is_inside(point, box)
        for is_point, (point, box) in zip(well_formed, found, strict=True)
    ]
    columns = {"accuracy": np.array(correct, float), "well_formed": np.array(well_formed, float)}
    return Scored(correct, columns)


def _numbers(text: str) -> list[float]:
    """Returns the numbers in a text, in order."""
    return [float(number) for number in _NUMBER.findall(text)]


def is_box_like(answer: str, reference: str) -> bool:
    """Returns whether an answer is a box that is written like the reference."""
    return _iou(answer, reference) is not None


def _iou(answer: str, reference: str) -> float | None:
    """Returns the IoU of two boxes; None if the answer is not a box written like the reference."""
    expected = _numbers(reference)
    if len(expected) != 4:
        raise ValueError(f"reference {reference!r:.80}: expected one box of four numbers")
    found = _numbers(answer)
    if len(found) != 4 or _form(answer) != _form(reference):
        return None
    if found[0] > found[2] or found[1] > found[3]:
        return None
    return iou(found, expected)


def _form(text: str) -> str:
    """Returns a text without spaces and a final period, with `#` for each number."""
    return _NUMBER.sub("#", "".join(text.split())).removesuffix(".")
