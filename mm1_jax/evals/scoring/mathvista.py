"""MathVista (Lu et al., 2024): extracts answers and normalizes them by the type of the question.

Officially, a language model extracts the answer from a reply. Without such an extraction, rules
extract it.
"""

import re
from collections.abc import Sequence

import numpy as np

from mm1_jax.evals.scoring.items import Item, Scored, percentages
from mm1_jax.evals.scoring.short_answers import edit_distance

_IN_BRACKETS = re.compile(r"\(([a-zA-Z])\)")
_QUOTED = re.compile(r'The answer is "(.*)"\.')
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?|-?\.\d+")


def mathvista(items: Sequence[Item]) -> Scored:
    """Accuracy in percent.

    If a record has no `extraction`, a reply of one letter to a question with choices is that
    choice, and other answers are extracted by rule.
    """
    correct = [_is_right(item) for item in items]
    return Scored(correct, {"accuracy": np.array(correct, float)}, percentages)


def _is_right(item: Item) -> bool:
    record = item.record
    choices, kind = record["choices"] or None, record["answer_type"]
    extraction = record.get("extraction")
    if extraction is None:
        bare = item.text.strip(" ().")
        is_letter = choices and len(bare) == 1
        extraction = bare if is_letter else extracted_by_rule(item.text, choices, kind)
    normalised = normalised_answer(
        extraction, choices=choices, answer_type=kind, precision=record["precision"]
    )
    return normalised == record["answers"][0]


def normalised_answer(
    extraction: str,
    *,
    choices: Sequence[str] | None,
    answer_type: str,
    precision: int | None,
) -> str | None:
    """Returns the answer in the form of the reference, or None if it cannot be converted.

    Args:
        choices: The choices of a multiple-choice question; None for other questions. The answer is
            the text of the choice with the extracted letter, or else at the least edit distance.
        answer_type: "integer", "float", "list" or "text".
        precision: The number of decimals of a float.
    """
    if choices is not None:
        extraction = extraction.strip()
        if in_brackets := _IN_BRACKETS.findall(extraction):
            extraction = in_brackets[0].upper()
        letters = [chr(ord("A") + i) for i in range(len(choices))]
        if extraction in letters:
            return choices[letters.index(extraction)]
        return min(choices, key=lambda choice: edit_distance(extraction, choice))
    try:
        if answer_type == "integer":
            return str(int(float(extraction)))
        if answer_type == "float":
            return str(round(float(extraction), precision))
    except (ValueError, OverflowError):
        return None
    return extraction


def extracted_by_rule(reply: str, choices: Sequence[str] | None, answer_type: str) -> str:
    """Extracts the answer from a reply without a language model.

    The rules in order: the text in 'The answer is "...".'; of a question with choices, the last
    letter in parentheses, or the choice mentioned last; of a question for a number, the last
    number, or "" without one; the whole reply.
    """
    reply = reply.strip()
    if quoted := _QUOTED.findall(reply):
        return quoted[-1]
    if choices is not None:
        if in_brackets := _IN_BRACKETS.findall(reply):
            return f"({in_brackets[-1]})"
        named = [choice for choice in choices if choice.lower() in reply.lower()]
        return max(named, key=lambda choice: reply.lower().rfind(choice.lower()), default=reply)
    if answer_type in ("integer", "float"):
        numbers = _NUMBER.findall(reply)
        return numbers[-1].replace(",", "") if numbers else ""
    return reply
