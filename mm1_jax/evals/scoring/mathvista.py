"""MathVista: an extracted answer as the type of its question has it (Lu et al., 2024).

Officially a language model extracts the answer from a reply. Where there is no such extraction,
rules find it, and scores say how many were found so.
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
    """The accuracy in percent.

    Where a record has no `extraction`, a reply of one letter is that option, and others are
    extracted by rule.
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
    """The answer in the form of the reference, or None where it has none.

    Args:
        choices: Of a multiple-choice question, whose answer is the text of one: by letter, or the
            one at the least edit distance. None for other questions.
        answer_type: "integer", "float", "list" or "text".
        precision: Decimals of a float.
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
    """Extracts the answer of a reply without a language model; "" where no rule finds one.

    The text in 'The answer is "...".', else the last letter in brackets or choice, else the last
    number, else the reply.
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
