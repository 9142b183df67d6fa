"""Facts about the embedded pictures: questions with one answer each, and the boxes of shapes.

Scenes, scans of digits and numbers have facts; `instructions` asks for them in several forms.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mm1_jax.data.corpora import scenes
from mm1_jax.data.corpora.digits import DigitsSource
from mm1_jax.data.corpora.embedded import NUMBERS, ORDINALS, Kind
from mm1_jax.data.corpora.scenes import COLORS, MAX_COUNT, RELATIONS, SHAPES, Scene, ScenesSource

YES_NO = ("yes", "no")
_DIGITS = tuple(map(str, range(10)))
_PARITIES = ("even", "odd")


@dataclass(frozen=True)
class Fact:
    """A question with its answer.

    Attributes:
        statement: A sentence that tells the answer, which stands for `{}`.
        key: Name of the answer in JSON.
        value: The answer in JSON.
        choices: All possible answers.
        phrases: The words of answers in a statement, where they are not the answers themselves.
    """

    question: str
    answer: str
    statement: str
    key: str
    value: str | int
    choices: tuple[str, ...]
    phrases: Mapping[str, str] = field(default_factory=dict)

    def said(self, answer: str) -> str:
        """Returns the statement for an answer."""
        return self.statement.format(self.phrases.get(answer, answer))


@dataclass(frozen=True)
class Subject:
    """Pictures, the facts about them, and the boxes of what one picture shows, by description."""

    images: tuple[Any, ...]
    facts: tuple[Fact, ...]
    boxes: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


class Subjects:
    """Draws subjects of one split."""

    def __init__(self, split: str):
        self._scenes = _source(ScenesSource, split)
        self._digits = _source(DigitsSource, split)

    def draw(self, pictures: str, rng: random.Random) -> Subject:
        """Draws a subject of "scenes", "digits" or "none", which is about numbers alone."""
        return {"scenes": self._scene, "digits": self._scan, "none": _numbers}[pictures](rng)

    def _scene(self, rng: random.Random) -> Subject:
        draw = rng.random()
        if draw < 0.4:
            return _of_pair(rng, self._scenes.pair(rng))
        if draw < 0.8:
            return _of_alike(rng, self._scenes.alike(rng))
        first = self._scenes.alike(rng)
        shape = first.shapes[0]
        # About as many pairs are alike as not.
        color = shape.color if rng.random() < 0.4 else None
        form = shape.shape if rng.random() < 0.4 else None
        return _of_two_scenes(first, self._scenes.alike(rng, color=color, shape=form))

    def _scan(self, rng: random.Random) -> Subject:
        (first, a), (second, b) = self._digits.draw(rng, 2)
        if a == b or rng.random() < 0.8:
            return Subject((first,), _of_digit(rng, a))
        larger = ORDINALS[b > a]
        return Subject(
            (first, second),
            (
                _fact(
                    "which digit is larger?",
                    larger,
                    "the {} digit is larger",
                    "larger",
                    ORDINALS[:2],
                ),
            ),
        )


def _source(klass: Any, split: str) -> Any:
    return klass.default_config().set(kind=Kind.CAPTIONS).instantiate(split=split)


def _of_pair(rng: random.Random, scene: Scene) -> Subject:
    facts = []
    for shape in scene.shapes:
        name, color = shape.shape, shape.color
        facts += [
            _fact(f"what color is the {name}?", color, f"the {name} is {{}}", "color", COLORS),
            _fact(
                f"which shape is {color}?", name, f"the {color} shape is a {{}}", "shape", SHAPES
            ),
        ]
    asked, other = rng.sample(scene.shapes, 2)
    relation = scenes.relation(asked, other)
    facts.append(
        Fact(
            f"where is the {asked.shape} relative to the {other.shape}?",
            relation.removesuffix(" of"),
            f"the {asked.shape} is {{}} the {other.shape}",
            "relation",
            relation.removesuffix(" of"),
            RELATIONS,
            {"left": "left of", "right": "right of"},
        )
    )
    return Subject((scene.render,), tuple(facts), {str(each): each.box for each in scene.shapes})


def _of_alike(rng: random.Random, scene: Scene) -> Subject:
    # The wordings are those of the corpora `scenes` and `digits`, whose questions a chat repeats.
    first, count = scene.shapes[0], len(scene.shapes)
    asks_shape = rng.choice(("which shape is shown?", "what shape do you see?"))
    counted = rng.choice(("shapes", scenes.plural(first)))
    name = first.shape if count == 1 else scenes.plural(first)
    verb = "is" if count == 1 else "are"
    facts = (
        _fact(
            f"what color {verb} the {name}?", first.color, f"the {name} {verb} {{}}", "color",
            COLORS,
        ),
        _fact(asks_shape, first.shape, "the shape is a {}", "shape", SHAPES),
        Fact(
            f"how many {counted} are there?", NUMBERS[count], f"the number of {counted} is {{}}",
            "count", count, NUMBERS[1 : MAX_COUNT + 1],
        ),
    )  # fmt: skip
    boxes = {str(first): first.box} if count == 1 else {}
    return Subject((scene.render,), facts, boxes)


def _of_two_scenes(first: Scene, second: Scene) -> Subject:
    a, b = first.shapes[0], second.shapes[0]
    facts = [
        _fact(
            f"do both pictures show the same {key}?",
            YES_NO[getattr(a, key) != getattr(b, key)],
            "{}",
            f"same_{key}",
            YES_NO,
        )
        for key in ("color", "shape")
    ]
    if len(first.shapes) != len(second.shapes):
        more = ORDINALS[len(second.shapes) > len(first.shapes)]
        statement = "the {} picture has more shapes"
        facts.append(_fact("which picture has more shapes?", more, statement, "more", ORDINALS[:2]))
    return Subject((first.render, second.render), tuple(facts))


def _of_digit(rng: random.Random, digit: int) -> tuple[Fact, ...]:
    return (
        Fact(
            rng.choice(("what digit is this?", "which digit is written here?")), str(digit),
            "the digit is {}", "digit", digit, _DIGITS,
        ),
        _fact(
            "is this digit even or odd?", _PARITIES[digit % 2], "this digit is {}", "parity",
            _PARITIES,
        ),
        _fact("is this digit larger than 4?", YES_NO[digit <= 4], "{}", "above_four", YES_NO),
    )  # fmt: skip


def _numbers(rng: random.Random) -> Subject:
    a, b = rng.randrange(10), rng.randrange(10)
    low, high = sorted((a, b))
    question, statement, number = rng.choice(
        (
            (f"what is {NUMBERS[a]} plus {NUMBERS[b]}?", f"{NUMBERS[a]} plus {NUMBERS[b]} is {{}}",
             a + b),
            (f"what is {NUMBERS[high]} minus {NUMBERS[low]}?",
             f"{NUMBERS[high]} minus {NUMBERS[low]} is {{}}", high - low),
            (f"what comes after {NUMBERS[a]}?", f"{{}} comes after {NUMBERS[a]}", a + 1),
        )
    )  # fmt: skip
    fact = Fact(question, NUMBERS[number], statement, "number", number, NUMBERS)
    return Subject((), (fact,))


def _fact(question: str, answer: str, statement: str, key: str, choices: Iterable[str]) -> Fact:
    return Fact(question, answer, statement, key, answer, tuple(choices))
