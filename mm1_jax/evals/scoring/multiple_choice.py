"""Scores of multiple-choice questions: ScienceQA, MMBench and SEED-Bench."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mm1_jax.evals.scoring.items import Item, Scored, of_group, percentages
from mm1_jax.evals.scoring.texts import exact_match

SCIENCEQA_LETTERS = "ABCDE"
# MMBench asks a question once per option, with rotated options. The indices of the rounds of a
# question differ by multiples of this number.
MMBENCH_ROUND = 10**6
# SEED-Bench: question types 1 to 9 show an image, 10 to 12 a video.
SEED_IMAGE_TYPES = range(1, 10)
SEED_TYPES = range(1, 13)
# Texts of an empty cell in tables written by pandas.
NOTHING = ("", "nan")

_LETTER = re.compile(r"\(?([A-Z])(?:[).:,]|\s|$)")
_IN_BRACKETS = re.compile(r"\(([A-Z])\)")


def scienceqa_letter(reply: str, num_choices: int) -> str | None:
    """Returns the letter that a reply is ("B"), begins with ("B. ") or names ("The answer is B.").

    Returns None without such a letter, or if it is not the letter of a choice.
    """
    if reply in [*SCIENCEQA_LETTERS]:
        letter = reply
    elif reply[:1] in [*SCIENCEQA_LETTERS] and reply[1:3] == ". ":
        letter = reply[0]
    else:
        found = re.findall(r"The answer is ([A-Z]).", reply)
        letter = found[0] if len(found) == 1 else ""
    return letter if letter in [*SCIENCEQA_LETTERS[:num_choices]] else None


def option_letter(reply: str, options: Mapping[str, str]) -> str | None:
    """Returns the letter of the option that a reply chooses, or None.

    The rules in order: a letter at the beginning ("B", "B.", "(B) a dog"); the only option letter
    in parentheses; the option whose text equals the reply.
    """
    reply = reply.strip()
    if (found := _LETTER.match(reply)) and found[1] in options:
        return found[1]
    in_brackets = {letter for letter in _IN_BRACKETS.findall(reply) if letter in options}
    if len(in_brackets) == 1:
        return in_brackets.pop()
    same = [letter for letter, text in options.items() if exact_match(text, reply)]
    return same[0] if len(same) == 1 else None


def scienceqa(items: Sequence[Item]) -> Scored:
    """Accuracy in percent over all questions, and over those with a picture."""
    correct = [
        scienceqa_letter(item.text, len(item.record["options"])) == item.record["answer"]
        for item in items
    ]
    shown = [bool(item.record["images"]) for item in items]
    columns = {"acc": np.array(correct, float), "img_acc": of_group(correct, shown, True)}
    return Scored(correct, columns, percentages)


def mmbench(items: Sequence[Item]) -> Scored:
    """Accuracy over questions in percent: right in all rounds (circular) or the first (vanilla)."""
    correct = [_chooses_right(item) for item in items]
    questions = [int(item.key) % MMBENCH_ROUND for item in items]
    in_all: dict[int, bool] = {}
    for question, value in zip(questions, correct, strict=True):
        in_all[question] = in_all.get(question, True) and value
    is_first = [int(item.key) < MMBENCH_ROUND for item in items]
    return Scored(
        correct,
        {
            "circular_acc": of_group([in_all[each] for each in questions], is_first, True),
            "vanilla_acc": of_group(correct, is_first, True),
        },
        percentages,
        units=[*map(str, questions)],
    )


def seed(items: Sequence[Item]) -> Scored:
    """Accuracy in percent over all questions, over images and videos, and per question type."""
    correct = [_chooses_right(item) for item in items]
    types = [item.record["kind"] for item in items]
    media = ["image" if number in SEED_IMAGE_TYPES else "video" for number in types]
    columns = {"acc": np.array(correct, float)}
    columns |= {f"{each}_acc": of_group(correct, media, each) for each in {*media}}
    columns |= {f"type_{each}_acc": of_group(correct, types, each) for each in {*types}}
    return Scored(correct, dict(sorted(columns.items())), percentages)


def seed_images(items: Sequence[Item]) -> Scored:
    """Accuracy in percent over questions about images (`image_acc`), and per question type."""
    scored = seed(items)
    columns = {name: values for name, values in scored.columns.items() if name != "acc"}
    return replace(scored, columns=columns)


def _chooses_right(item: Item) -> bool:
    return option_letter(item.text, item.record["options"]) == item.record["answer"]
