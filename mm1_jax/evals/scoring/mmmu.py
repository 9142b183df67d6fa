"""MMMU: parsing of replies to answers, and their scores (Yue et al., 2024).

For a reply that names no option, the official code draws one from a single random stream, so a
score depends on the order of the questions. Here the drawn option depends only on the question's
id, and such replies are counted.
"""

import re
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from mm1_jax.evals.scoring.items import Item, Scored, of_group

_STRIPPED = ",.!?;:'"
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_WITH_COMMAS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+")
_SIMPLE = re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])")
# Replies with more words than this are also searched for the texts of options.
_SHORT_REPLY = 5


def mmmu(items: Sequence[Item]) -> Scored:
    """Accuracy over all questions and per subject, as fractions of 1.

    `random` is the fraction of replies that name no option. For such a reply, `drawn` in a record
    is the option that the official code drew; `overall_own_choice` ignores it and uses our draw.
    """
    verdicts = [_verdicts(item) for item in items]
    correct = [recorded for recorded, _, _ in verdicts]
    subjects = [item.record["subject"] for item in items]
    columns = {
        "overall": np.array(correct, float),
        "overall_own_choice": np.array([own for _, own, _ in verdicts], float),
        "random": np.array([is_random for _, _, is_random in verdicts], float),
    }
    columns |= {f"subject_{x}": of_group(correct, subjects, x) for x in sorted({*subjects})}
    return Scored(correct, columns)


def mmmu_asked(items: Sequence[Item]) -> Scored:
    """Scores of a model's own answers, for which there are no official draws."""
    scored = mmmu(items)
    columns = {name: x for name, x in scored.columns.items() if name != "overall_own_choice"}
    return Scored(scored.correct, columns)


def _verdicts(item: Item) -> tuple[bool, bool, bool]:
    """Returns right by the recorded draw, right by our own draw, and whether a draw is needed."""
    answers, options = item.record["answers"], item.record["options"]
    if not item.record["is_choice"]:
        right = open_correct(open_answers(item.text), answers)
        return right, right, False
    if options is None:
        # The reply was already parsed to a letter.
        return item.text in answers, item.text in answers, False
    option = chosen_option(item.text, options)
    own = option or chance_option(item.key, list(options))
    drawn = item.record.get("drawn")
    recorded = own if drawn is None else drawn
    return recorded in answers, own in answers, drawn is not None or option is None


def chosen_option(reply: str, options: Mapping[str, str]) -> str | None:
    """Returns the letter of the option that a reply names, or None.

    The rules in order: a letter in parentheses; a letter between spaces; in longer replies, the
    text of an option. Of several options, the one mentioned last counts.
    """
    for mark in _STRIPPED:
        reply = reply.strip(mark)
    reply = f" {reply} "
    marks = [
        ({letter: f"({letter})" for letter in options}, reply),
        ({letter: f" {letter} " for letter in options}, reply),
    ]
    if len(reply.split()) > _SHORT_REPLY:
        marks.append(({letter: text.lower() for letter, text in options.items()}, reply.lower()))
    for mark_of, text in marks:
        if named := [letter for letter, mark in mark_of.items() if mark in text]:
            # If the last mentions of two options coincide, the first option counts.
            return max(named, key=lambda letter: text.rfind(mark_of[letter]))
    return None


def chance_option(question_id: str, letters: Sequence[str]) -> str:
    """Draws an option for a reply that names none; always the same one for a question."""
    return letters[zlib.crc32(question_id.encode("utf-8", "replace")) % len(letters)]


def open_answers(reply: str) -> list[str | float]:
    """Returns the candidate answers in a reply to an open question: phrases, and their numbers."""
    phrases = _key_phrases(reply)
    numbers = [
        number
        for phrase in phrases
        for pattern in (_WITH_COMMAS, _SCIENTIFIC, _SIMPLE)
        for number in pattern.findall(phrase)
    ]
    return [value for text in (*phrases, *numbers) for value in normalised(text)]


def _key_phrases(reply: str) -> list[str]:
    """Returns per line the shortest text after a word such as "is", or else the whole reply."""
    reply = reply.strip().strip(".").lower()
    lines = reply.split("\n")
    phrases = []
    for i, line in enumerate(lines):
        indicators = (*_INDICATORS, "=") if i == len(lines) - 1 else _INDICATORS
        ends = [line.split(mark)[-1].strip() for mark in indicators if mark in line]
        # The first of equally short ones; an empty one only if there is no other.
        phrase = ""
        for end in ends:
            if not phrase or len(end) < len(phrase):
                phrase = end
        if phrase and phrase not in _STRIPPED:
            phrases.append(phrase)
    return phrases or [reply]


def normalised(text: str) -> list[str | float]:
    """Normalizes a text to a number with two decimals, or to lowercase text.

    A single character is returned with a space before and after it, so that "a" is not found in
    every word.
    """
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def open_correct(answers: Sequence[str | float], references: Sequence[str]) -> bool:
    """Returns True if a phrase contains a reference, or a number is one."""
    accepted = [value for reference in references for value in normalised(reference)]
    texts = [value for value in accepted if isinstance(value, str)]
    return any(
        any(text in answer for text in texts) if isinstance(answer, str) else answer in accepted
        for answer in answers
    )
