"""Texts of the small world, without pictures: facts about beings, and sentences with agreement.

Beings have a name, a home, a food and a weight. Pictures show the first `NUM_BEINGS` of them, and
pages tell home and food of the first half of those; nothing but text tells them of the others.
Weights are compared for four fifths of the pairs, so that the others must be inferred.

A verb agrees with the head of its subject, whatever nouns stand between them.
"""

import random
import zlib
from typing import Any, NamedTuple

from mm1_jax.batch import Record
from mm1_jax.data.corpora.scenes import COLORS, SHAPES, plural
from mm1_jax.data.corpora.world import NUM_BEINGS

HOMES = ("sea", "fen", "hill", "wood")
FOODS = ("corn", "nuts", "fish", "hay")
# Beings whose facts pages tell beside their pictures.
NUM_TOLD = NUM_BEINGS // 2
FACT_KINDS = ("home", "food", "weight")
_STARTS = ("b", "d", "f", "g", "l", "m", "n", "p", "r", "w", "y", "z")
_ENDS = ("ang", "een", "ell", "itt", "umb")
_PREPOSITIONS = ("left of", "right of", "above", "below")
_TEST_EVERY = 5


class Fact(NamedTuple):
    """A true statement in two parts, and the false second parts."""

    start: str
    end: str
    others: tuple[str, ...]
    kind: str

    def __str__(self) -> str:
        return f"{self.start} {self.end}"

    def record(self, rng: random.Random) -> Record:
        """Returns the question for the second part, with options in random order."""
        options = [self.end, *self.others]
        rng.shuffle(options)
        return {
            "images": [],
            "question": self.start,
            "answer": self.end,
            "answers": [self.end],
            "options": options,
            "label": options.index(self.end),
            "kind": self.kind,
        }


def _shuffled(values: Any, name: str) -> list[Any]:
    found = list(values)
    random.Random(f"world/{name}").shuffle(found)
    return found


NAMES: tuple[str, ...] = tuple(
    _shuffled((start + end for start in _STARTS for end in _ENDS), "names")
)
# Homes and foods are balanced within each half of the beings that pictures show.
_PAIRS = [(home, food) for home in HOMES for food in FOODS]
_TRAITS = [pair for start in range(0, len(NAMES), 16) for pair in _shuffled(_PAIRS, f"{start}")]
_WEIGHTS = _shuffled(range(len(NAMES)), "weights")


def home(number: int) -> str:
    return _TRAITS[number][0]


def food(number: int) -> str:
    return _TRAITS[number][1]


def trait(kind: str, number: int) -> str:
    """Returns home or food of a being as the words that follow its name."""
    return f"from the {home(number)}" if kind == "home" else f"that eats {food(number)}"


def draw_fact(rng: random.Random, kind: str, *, is_test: bool) -> Fact:
    """Draws a fact about beings. Only facts about weights differ between the splits."""
    number = rng.randrange(len(NAMES))
    name = NAMES[number]
    if kind == "home":
        start, value, choices = f"the {name} lives in the", home(number), HOMES
    elif kind == "food":
        start, value, choices = f"the {name} eats", food(number), FOODS
    else:
        while True:
            other = rng.choice([each for each in range(len(NAMES)) if each != number])
            pair = f"weight/{min(number, other)}/{max(number, other)}".encode()
            if (zlib.crc32(pair) % _TEST_EVERY == 0) == is_test:
                break
        is_heavier = _WEIGHTS[number] > _WEIGHTS[other]
        value, false = ("more", "less") if is_heavier else ("less", "more")
        end = f"{{}} than the {NAMES[other]}"
        return Fact(f"the {name} weighs", end.format(value), (end.format(false),), kind)
    others = tuple(each for each in choices if each != value)
    return Fact(start, value, others, kind)


def draw_agreement(rng: random.Random, max_between: int, *, is_test: bool) -> Fact:
    """Draws a sentence whose verb agrees with its first noun, after `max_between` others at most.

    The sentences of a split differ from those of the other in their subject.
    """
    while True:
        shapes = rng.sample(SHAPES, rng.randint(1, max_between + 1))
        are_many = [rng.random() < 0.5 for _ in shapes]
        nouns = [
            plural(shape) if many else shape for shape, many in zip(shapes, are_many, strict=True)
        ]
        relations = [rng.choice(_PREPOSITIONS) for _ in nouns[1:]]
        subject = f"the {nouns[0]}"
        if len(nouns) > 1 and rng.random() < 0.5:
            # "the circles that the square is above are red": the last verb but one has its own.
            inner = "are" if are_many[1] else "is"
            subject += f" that the {nouns[1]} {inner} {relations[0]}"
            nouns, relations = nouns[1:], relations[1:]
        subject += "".join(
            f" {relation} the {noun}" for relation, noun in zip(relations, nouns[1:], strict=True)
        )
        if (zlib.crc32(subject.encode()) % _TEST_EVERY == 0) == is_test:
            break
    right, wrong = ("are", "is") if are_many[0] else ("is", "are")
    color = rng.choice(list(COLORS))
    return Fact(subject, f"{right} {color}", (f"{wrong} {color}",), f"between_{len(shapes) - 1}")


def draw_sentence(rng: random.Random, max_between: int) -> str:
    """Draws a sentence for training."""
    draw = rng.random()
    if draw < 0.3:
        number, other = rng.sample(range(len(NAMES)), 2)
        a, b = rng.choice(("home", "food")), rng.choice(("home", "food"))
        return f"a {NAMES[number]} {trait(a, number)} met a {NAMES[other]} {trait(b, other)}."
    if draw < 0.7:
        kind = rng.choice((*FACT_KINDS, "weight"))
        return f"{draw_fact(rng, kind, is_test=False)}."
    return f"{draw_agreement(rng, max_between, is_test=False)}."
