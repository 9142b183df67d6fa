"""MMMU: how a reply becomes an answer, and when that is right (Yue et al., 2024).

The official code takes a random option for a reply that names none, from one stream of random
numbers, so a score depends on the order of the questions. Here the option is a function of the
question's id alone, and such replies are counted.
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
# A reply of so many words is no name of an option, and may quote one.
_SHORT_REPLY = 5


def mmmu(items: Sequence[Item]) -> Scored:
    """Shares of 1: right of all questions, and by subject.

    `random` is of replies that name no option. A record says what the official code drew for such
    a reply in `drawn`; `overall_own_choice` does not look at that.
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
    """Shares of 1 for a model that was asked, for which nothing was drawn officially."""
    scored = mmmu(items)
    columns = {name: x for name, x in scored.columns.items() if name != "overall_own_choice"}
    return Scored(scored.correct, columns)


def _verdicts(item: Item) -> tuple[bool, bool, bool]:
    """Right by the recorded draw, right by our own, and whether there is anything to draw."""
    answers, options = item.record["answers"], item.record["options"]
    if not item.record["is_choice"]:
        right = open_correct(open_answers(item.text), answers)
        return right, right, False
    if options is None:
        # The reply was parsed to a letter before.
        return item.text in answers, item.text in answers, False
    option = chosen_option(item.text, options)
    own = option or chance_option(item.key, list(options))
    drawn = item.record.get("drawn")
    recorded = own if drawn is None else drawn
    return recorded in answers, own in answers, drawn is not None or option is None


def chosen_option(reply: str, options: Mapping[str, str]) -> str | None:
    """The option that a reply names, or None.

    A letter in brackets, else a letter between spaces, else, in longer replies, the text of an
    option; of several, the one whose last mention is the last.
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
            # Of options that are mentioned at one place, the first.
            return max(named, key=lambda letter: text.rfind(mark_of[letter]))
    return None


def chance_option(question_id: str, letters: Sequence[str]) -> str:
    """The option for a reply that names none: random over questions, always the same for one."""
    return letters[zlib.crc32(question_id.encode("utf-8", "replace")) % len(letters)]


def open_answers(reply: str) -> list[str | float]:
    """Lists the answers that a reply to an open question may mean: phrases, and numbers in them."""
    phrases = _key_phrases(reply)
    numbers = [
        number
        for phrase in phrases
        for pattern in (_WITH_COMMAS, _SCIENTIFIC, _SIMPLE)
        for number in pattern.findall(phrase)
    ]
    return [value for text in (*phrases, *numbers) for value in normalised(text)]


def _key_phrases(reply: str) -> list[str]:
    """Returns the text behind the last of a line's words such as "is", or the whole reply."""
    reply = reply.strip().strip(".").lower()
    lines = reply.split("\n")
    phrases = []
    for i, line in enumerate(lines):
        indicators = (*_INDICATORS, "=") if i == len(lines) - 1 else _INDICATORS
        ends = [line.split(mark)[-1].strip() for mark in indicators if mark in line]
        # Of equally short ones the first; an empty one is only what nothing else is there for.
        phrase = ""
        for end in ends:
            if not phrase or len(end) < len(phrase):
                phrase = end
        if phrase and phrase not in _STRIPPED:
            phrases.append(phrase)
    return phrases or [reply]


def normalised(text: str) -> list[str | float]:
    """A number with two decimals, or lower-cased text; a single character beside a space.

    The space keeps "a" from being found in every word.
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
