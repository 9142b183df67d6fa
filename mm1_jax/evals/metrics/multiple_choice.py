"""Scores of multiple-choice questions: ScienceQA, MMBench and SEED-Bench."""

import re
from collections.abc import Mapping, Sequence

from mm1_jax.evals.metrics.answers import exact_match, mean

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


def mmbench_scores(correct: Mapping[int, bool]) -> dict[str, int | float]:
    """MMBench from the verdict on every row, by index; accuracies as percentages.

    Circular: a question is right where it is right in all its rounds. Vanilla: in the first.
    """
    questions: dict[int, list[bool]] = {}
    for index, verdict in correct.items():
        questions.setdefault(index % MMBENCH_ROUND, []).append(verdict)
    return {
        "n_questions": len(questions),
        "n_rows": len(correct),
        "circular_acc": 100 * mean([all(verdicts) for verdicts in questions.values()]),
        "vanilla_acc": 100 * mean([correct[index] for index in questions]),
    }


def seed_scores(correct: Sequence[bool], types: Sequence[int]) -> dict[str, int | float]:
    """SEED-Bench, percentages: of all, of questions on images and on videos, and by type."""
    by_name: dict[str, list[bool]] = {}
    for verdict, number in zip(correct, types, strict=True):
        kind = "image" if number in SEED_IMAGE_TYPES else "video"
        for name in ("acc", f"{kind}_acc", f"type_{number}_acc"):
            by_name.setdefault(name, []).append(verdict)
    return {"n": len(correct)} | {name: 100 * mean(by_name[name]) for name in sorted(by_name)}
