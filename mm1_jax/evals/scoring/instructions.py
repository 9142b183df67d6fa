"""Scores of answers to instructions: whether they are right, and whether they keep to the form.

The two are scored apart. `accuracy` is an exact match with the reference, or for a box an IoU of at
least 0.5; `well_formed` is the fraction of answers in the form that the instruction asks for,
whatever they say. Both are given over all instructions and per form.
"""

import json
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mm1_jax.evals.scoring.boxes import box_accuracy, is_box_like
from mm1_jax.evals.scoring.items import Item, Scored, of_group
from mm1_jax.evals.scoring.texts import exact_match, normalise

# "A single word or phrase" has no more words than this.
MAX_PHRASE_WORDS = 4
_SENTENCE = re.compile(r"[A-Z0-9][^.!?\n]*[.!?]")


def instructions(items: Sequence[Item]) -> Scored:
    """Computes `accuracy` and `well_formed`, both also per form, and the mean IoU of boxes."""
    forms = [item.record["form"] for item in items]
    well_formed = [is_well_formed(item) for item in items]
    correct = [_is_right(item) for item in items]
    columns = {
        "accuracy": np.array(correct, float),
        "well_formed": np.array(well_formed, float),
    }
    for form in sorted({*forms}):
        columns[f"accuracy_{form}"] = of_group(correct, forms, form)
        columns[f"well_formed_{form}"] = of_group(well_formed, forms, form)
    if "box" in forms:
        columns["mean_iou"] = np.array([_iou(item) for item in items])
    return Scored(correct, columns)


def is_well_formed(item: Item) -> bool:
    """Returns whether an answer has the form that its instruction asks for."""
    return _FORMS[item.record["form"]](item.text.strip(), item.reference, item.record)


def _is_right(item: Item) -> bool:
    form = item.record["form"]
    if form == "box":
        return bool(box_accuracy([item]).correct[0])
    if form == "json":
        return _parsed(item.text) == json.loads(item.reference)
    return exact_match(item.text, item.reference)


def _iou(item: Item) -> float:
    if item.record["form"] != "box":
        return np.nan
    return float(box_accuracy([item]).columns["mean_iou"][0])


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _is_phrase(text: str, reference: str, record: Mapping[str, Any]) -> bool:
    words = text.removesuffix(".").split()
    is_sentence = len(words) > 1 and text.endswith(".")
    return 1 <= len(words) <= MAX_PHRASE_WORDS and "\n" not in text and not is_sentence


def _is_letter(text: str, reference: str, record: Mapping[str, Any]) -> bool:
    letters = string.ascii_uppercase[: len(record["options"])]
    return len(letter := text.removesuffix(".")) == 1 and letter in letters


def _is_yes_or_no(text: str, reference: str, record: Mapping[str, Any]) -> bool:
    return normalise(text) in ("yes", "no")


def _is_sentence(text: str, reference: str, record: Mapping[str, Any]) -> bool:
    return _SENTENCE.fullmatch(text) is not None and len(text.split()) > 2


def _is_object(text: str, reference: str, record: Mapping[str, Any]) -> bool:
    found = _parsed(text)
    return isinstance(found, dict) and {*found} == {*record["keys"]}


def _is_box(text: str, reference: str, record: Mapping[str, Any]) -> bool:
    return is_box_like(text, reference)


def _is_reply(text: str, reference: str, record: Mapping[str, Any]) -> bool:
    """A text-only reply is a sentence, unless the question asks for a short answer."""
    form = _is_sentence if reference.endswith(".") else _is_phrase
    return form(text, reference, record)


_FORMS: dict[str, Callable[[str, str, Mapping[str, Any]], bool]] = {
    "short_answer": _is_phrase,
    "letter": _is_letter,
    "yes_no": _is_yes_or_no,
    "sentence": _is_sentence,
    "json": _is_object,
    "box": _is_box,
    "text": _is_reply,
}
