"""Scores of multiple-choice questions: ScienceQA, MMBench and SEED-Bench."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mm1_jax.evals.scoring.items import Item, Scored, of_group, percentages
from mm1_jax.evals.scoring.texts import exact_match

SCIENCEQA_LETTERS = "ABCDE"
# A question of MMBench is asked once for each of its options, which go round; the rounds of a
# question have indices that differ by multiples of this.
MMBENCH_ROUND = 10**6
# SEED-Bench: question types 1 to 9 show an image, 10 to 12 a video.
SEED_IMAGE_TYPES = range(1, 10)
SEED_TYPES = range(1, 13)
# Texts that pandas, with which tables of options are written, has for nothing.
NOTHING = ("", "nan")

_LETTER = re.compile(r"\(?([A-Z])(?:[).:,]|\s|$)")
_IN_BRACKETS = re.compile(r"\(([A-Z])\)")


def scienceqa_letter(reply: str, num_choices: int) -> str | None:
    """The letter that a reply is, begins with ("B. ") or names ("The answer is B."), or None.

    None too for the letter of no choice.
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
    """The option that a reply chooses, or None.

    Its letter at the beginning ("B", "B.", "(B) a dog"), else the only one in brackets, else the
    option whose text the reply is.
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
    """Percentages of all questions and of those with a picture."""
    correct = [
        scienceqa_letter(item.text, len(item.record["options"])) == item.record["answer"]
        for item in items
    ]
    shown = [bool(item.record["images"]) for item in items]
    columns = {"acc": np.array(correct, float), "img_acc": of_group(correct, shown, True)}
    return Scored(correct, columns, percentages)


def mmbench(items: Sequence[Item]) -> Scored:
    """Percentages. Circular: right in all rounds of a question. Vanilla: in the first."""
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
    """Percentages of all questions, of those on images and on videos, and by type."""
    correct = [_chooses_right(item) for item in items]
    types = [item.record["kind"] for item in items]
    media = ["image" if number in SEED_IMAGE_TYPES else "video" for number in types]
    columns = {"acc": np.array(correct, float)}
    columns |= {f"{each}_acc": of_group(correct, media, each) for each in {*media}}
    columns |= {f"type_{each}_acc": of_group(correct, types, each) for each in {*types}}
    return Scored(correct, dict(sorted(columns.items())), percentages)


def seed_images(items: Sequence[Item]) -> Scored:
    """Percentages of questions on images alone: of all (`image_acc`), and by type."""
    scored = seed(items)
    columns = {name: values for name, values in scored.columns.items() if name != "acc"}
    return replace(scored, columns=columns)


def _chooses_right(item: Item) -> bool:
    return option_letter(item.text, item.record["options"]) == item.record["answer"]
