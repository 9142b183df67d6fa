"""Rendered images of colored shapes, drawn from a seed, with captions and questions about them.

A scene is one to four identical shapes, or a pair of different shapes side by side or one above the
other, so that every question about it has one answer. The scene determines its image, its caption
and its split, so no held-out image is ever trained on, whatever the seed and the kind of corpus.
"""

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
from jaxtyping import UInt8

from mm1_jax.batch import Record
from mm1_jax.config import REQUIRED, Required, config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.embedded import (
    NUMBERS,
    ORDINALS,
    TO_DOCUMENT,
    DrawnSource,
    Kind,
    PageContent,
    page_record,
    text_record,
)
from mm1_jax.data.corpora.questions import question_prompt

COLORS = {
    "red": (225, 35, 35),
    "green": (30, 170, 50),
    "blue": (50, 80, 240),
    "yellow": (245, 215, 30),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle", "cross")
RELATIONS = ("left", "right", "above", "below")
QUESTION_KINDS = ("color", "shape", "count", "relation", "comparison")
# Kinds of questions in training, with more of those that take longest to learn: the color of one of
# two shapes, and the comparison of images.
TRAINING_KINDS = ("color", "comparison", "shape", "color", "relation", "comparison", "count")
MAX_COUNT = 4

_CANVAS = 64  # Pixels per side; the unit of all coordinates below.
_CENTERS = (16, 48)  # Centers of the quarters in each direction; a shape lies within a quarter.
_SUPERSAMPLING = 3
_SQUARE = 0.9  # Half of the side of a square, as a fraction of the radius of other shapes.
_TEST_EVERY = 5


@dataclass(frozen=True)
class Shape:
    """A shape with its color, its center and half its width."""

    color: str
    shape: str
    x: int
    y: int
    radius: int

    def __str__(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The smallest box around the shape, in fractions of the picture."""
        x, y, r = (value / _CANVAS for value in (self.x, self.y, self.radius))
        if self.shape == "square":
            r *= _SQUARE
        return x - r, y - r, x + r, y + r


@dataclass(frozen=True)
class Scene:
    """Shapes on a dark background. The left or upper shape of a pair comes first."""

    shapes: tuple[Shape, ...]
    ground: int

    @property
    def is_pair(self) -> bool:
        return len({(shape.color, shape.shape) for shape in self.shapes}) == 2

    @property
    def is_test(self) -> bool:
        return zlib.crc32(repr(self).encode()) % _TEST_EVERY == 0

    @property
    def caption(self) -> str:
        """The only caption of the scene."""
        first = self.shapes[0]
        if self.is_pair:
            return f"a {first} {relation(*self.shapes)} a {self.shapes[1]}"
        return _several(len(self.shapes), first.color, first.shape)

    def render(self) -> UInt8[np.ndarray, "64 64 3"]:
        """Renders the image, with antialiased edges."""
        side = _CANVAS * _SUPERSAMPLING
        picture = PIL.Image.new("RGB", (side, side), (self.ground,) * 3)
        draw = PIL.ImageDraw.Draw(picture)
        for shape in self.shapes:
            draw_shape(draw, shape, _SUPERSAMPLING)
        return np.asarray(picture.reduce(_SUPERSAMPLING))


class ScenesSource(DrawnSource):
    """Records of one kind about scenes of one split."""

    @config_class
    class Config(DrawnSource.Config):
        kind: Required[Kind] = REQUIRED

    def drawn(self, index: int) -> Record:
        """Returns a record. Images are render functions; captions and questions have `scenes`."""
        kind = self._config.kind
        rng = random.Random(f"scenes/{kind.value}/{self.split}/{self._config.seed}/{index}")
        if kind is Kind.CAPTIONS:
            scene = self.pair(rng) if rng.random() < 0.5 else self.alike(rng)
            return {"image": scene.render, "caption": scene.caption, "scenes": [scene]}
        if kind is Kind.QUESTIONS:
            kinds = QUESTION_KINDS if self.split == "test" else TRAINING_KINDS
            return self._question(rng, kinds[index % len(kinds)])
        if kind is Kind.TEXT:
            return text_record(_fact(rng) for _ in range(rng.randint(3, 7)))
        return page_record(self._page(rng))

    def _accept(self, draw: Callable[[], Scene]) -> Scene:
        while (scene := draw()).is_test != (self.split == "test"):
            pass
        return scene

    def alike(
        self,
        rng: random.Random,
        count: int | None = None,
        color: str | None = None,
        shape: str | None = None,
    ) -> Scene:
        count = count or rng.randint(1, MAX_COUNT)
        color = color or rng.choice(list(COLORS))
        shape = shape or rng.choice(SHAPES)
        return self._accept(lambda: _alike(rng, count, color, shape))

    def pair(self, rng: random.Random) -> Scene:
        colors, shapes = rng.sample(list(COLORS), 2), rng.sample(SHAPES, 2)
        is_row = rng.random() < 0.5
        return self._accept(lambda: _pair(rng, colors, shapes, is_row))

    def _question(self, rng: random.Random, kind: str) -> dict[str, Any]:
        scenes, question, answer = {
            "color": self._ask_color,
            "shape": self._ask_shape,
            "count": self._ask_count,
            "relation": self._ask_relation,
            "comparison": self._ask_comparison,
        }[kind](rng)
        return {
            "images": [scene.render for scene in scenes],
            "question": question,
            "answer": answer,
            "kind": kind,
            "caption": scenes[0].caption,
            "scenes": scenes,
        }

    def _ask_color(self, rng: random.Random) -> tuple[list[Scene], str, str]:
        if rng.random() < (0.5 if self.split == "test" else 0.75):
            scene = self.pair(rng)
            asked = rng.choice(scene.shapes)
            return [scene], f"what color is the {asked.shape}?", asked.color
        scene = self.alike(rng)
        asked = scene.shapes[0]
        noun = f"is the {asked.shape}" if len(scene.shapes) == 1 else f"are the {plural(asked)}"
        return [scene], f"what color {noun}?", asked.color

    def _ask_shape(self, rng: random.Random) -> tuple[list[Scene], str, str]:
        if rng.random() < 0.5:
            scene = self.pair(rng)
            asked = rng.choice(scene.shapes)
            return [scene], f"which shape is {asked.color}?", asked.shape
        scene = self.alike(rng)
        question = rng.choice(("which shape is shown?", "what shape do you see?"))
        return [scene], question, scene.shapes[0].shape

    def _ask_count(self, rng: random.Random) -> tuple[list[Scene], str, str]:
        count = rng.randint(1, MAX_COUNT)
        if count == 2 and rng.random() < 0.5:
            return [self.pair(rng)], "how many shapes are there?", NUMBERS[count]
        scene = self.alike(rng, count)
        noun = rng.choice(("shapes", plural(scene.shapes[0])))
        return [scene], f"how many {noun} are there?", NUMBERS[count]

    def _ask_relation(self, rng: random.Random) -> tuple[list[Scene], str, str]:
        scene = self.pair(rng)
        asked, other = rng.sample(scene.shapes, 2)
        question = f"where is the {asked.shape} relative to the {other.shape}?"
        return [scene], question, relation(asked, other).removesuffix(" of")

    def _ask_comparison(self, rng: random.Random) -> tuple[list[Scene], str, str]:
        topic = rng.choice(("color", "shape", "count"))
        first = self.alike(rng)
        color, shape, count = first.shapes[0].color, first.shapes[0].shape, len(first.shapes)
        if topic == "count":
            second = self.alike(rng, _other(rng, range(1, MAX_COUNT + 1), count))
            more = ORDINALS[len(second.shapes) > count]
            return [first, second], "which picture has more shapes?", more
        is_same = rng.random() < 0.5
        if topic == "color":
            second = self.alike(rng, color=color if is_same else _other(rng, COLORS, color))
        else:
            second = self.alike(rng, shape=shape if is_same else _other(rng, SHAPES, shape))
        question = f"do both pictures show the same {topic}?"
        return [first, second], question, "yes" if is_same else "no"

    def _page(self, rng: random.Random) -> PageContent:
        form = rng.choice(("captions", "questions", "comparison", "tour", "counting"))
        if form == "questions":
            return self._question_run(rng)
        if form == "counting":
            color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
            counts = range(1, rng.randint(2, MAX_COUNT) + 1)
            page: PageContent = []
            for count in counts:
                verb = "Here is" if count == 1 else "Now there are"
                page += [
                    self.alike(rng, count, color, shape).render,
                    f"{verb} {_several(count, color, shape)}.",
                ]
            return page
        if form == "comparison":
            return _comparison(rng, self.alike(rng), self.alike(rng))
        scenes = [
            self.pair(rng) if rng.random() < 0.5 else self.alike(rng)
            for _ in range(rng.randint(2, 8 if form == "captions" else len(ORDINALS)))
        ]
        if form == "captions":
            return [part for scene in scenes for part in (scene.render, scene.caption)]
        page = [f"Here are {NUMBERS[len(scenes)]} pictures."]
        for ordinal, scene in zip(ORDINALS, scenes, strict=False):
            page += [scene.render, f"The {ordinal} picture shows {scene.caption}."]
        return page

    def _question_run(self, rng: random.Random) -> PageContent:
        """Returns a page of questions in the form of a few-shot prompt, often all of one kind."""
        page: PageContent = []
        kinds = QUESTION_KINDS if rng.random() < 0.5 else (rng.choice(QUESTION_KINDS),)
        for _ in range(rng.randint(2, 7)):
            record = self._question(rng, rng.choice(kinds))
            answered = f"{question_prompt(record['question'])} {record['answer']}"
            page += [*record["images"], answered]
        return page


def corpus(kind: Kind, **source: Any) -> Corpus.Config:
    """Returns the corpus of a kind; `source` sets fields of `ScenesSource`."""
    return Corpus.default_config().set(
        name=f"scenes_{kind.value}",
        source=ScenesSource.default_config().set(kind=kind, **source),
        to_document=TO_DOCUMENT[kind],
    )


def _alike(rng: random.Random, count: int, color: str, shape: str) -> Scene:
    """Draws identical shapes in different quarters of the image."""
    ground, radius = rng.randint(8, 48), rng.randint(12, 13)
    quarters = sorted(rng.sample([(x, y) for y in _CENTERS for x in _CENTERS], count))
    shapes = tuple(Shape(color, shape, _near(rng, x), _near(rng, y), radius) for x, y in quarters)
    return Scene(shapes, ground)


def _pair(rng: random.Random, colors: Sequence[str], shapes: Sequence[str], is_row: bool) -> Scene:
    """Draws two shapes of different color and form, in adjacent quarters of a row or column."""
    ground, base = rng.randint(8, 48), rng.choice(_CENTERS)
    pair = []
    for color, shape, center in zip(colors, shapes, _CENTERS, strict=True):
        along, across = _near(rng, center), _near(rng, base)
        x, y = (along, across) if is_row else (across, along)
        pair.append(Shape(color, shape, x, y, rng.randint(12, 13)))
    return Scene(tuple(pair), ground)


def _near(rng: random.Random, center: int) -> int:
    return center + rng.randint(-2, 2)


def draw_shape(draw: PIL.ImageDraw.ImageDraw, shape: Shape, scale: int) -> None:
    """Draws a shape on a canvas that is enlarged by `scale`."""
    color = COLORS[shape.color]
    x, y, r = shape.x * scale, shape.y * scale, shape.radius * scale
    if shape.shape == "circle":
        # A ring: at this resolution, a disc would differ from a square only in its corners.
        draw.ellipse((x - r, y - r, x + r, y + r), outline=color, width=r // 2)
    elif shape.shape == "square":
        r = int(r * _SQUARE)
        draw.rectangle((x - r, y - r, x + r, y + r), fill=color)
    elif shape.shape == "triangle":
        draw.polygon(((x, y - r), (x - r, y + r), (x + r, y + r)), fill=color)
    else:
        arm = r // 5
        draw.rectangle((x - r, y - arm, x + r, y + arm), fill=color)
        draw.rectangle((x - arm, y - r, x + arm, y + r), fill=color)


def relation(shape: Shape, other: Shape) -> str:
    """Returns the position of `shape` relative to the other shape of a pair."""
    dx, dy = shape.x - other.x, shape.y - other.y
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def _several(count: int, color: str, shape: str) -> str:
    return f"a {color} {shape}" if count == 1 else f"{NUMBERS[count]} {color} {plural(shape)}"


def plural(shape: Shape | str) -> str:
    name = shape.shape if isinstance(shape, Shape) else shape
    return f"{name}es" if name.endswith("s") else f"{name}s"


def _other(rng: random.Random, choices: Any, value: Any) -> Any:
    return rng.choice([choice for choice in choices if choice != value])


def _comparison(rng: random.Random, first: Scene, second: Scene) -> PageContent:
    a, b = first.shapes[0], second.shapes[0]
    more = ORDINALS[len(second.shapes) > len(first.shapes)]
    told = rng.choice(
        (
            f"Both pictures show the color {a.color}."
            if a.color == b.color
            else f"The first picture is {a.color} and the second is {b.color}.",
            f"Both pictures show the same shape, the {a.shape}."
            if a.shape == b.shape
            else f"The first picture has the shape {a.shape} and the second {b.shape}.",
            "Both pictures have the same number of shapes."
            if len(first.shapes) == len(second.shapes)
            else f"The {more} picture has more shapes.",
        )
    )
    return [first.render, second.render, told]


def _fact(rng: random.Random) -> str:
    """Returns a true sentence about colors, shapes and numbers."""
    (red, blue, green), (circle, square) = rng.sample(list(COLORS), 3), rng.sample(SHAPES, 2)
    few = rng.randint(1, 3)
    more = rng.randint(few + 1, MAX_COUNT)
    forward, back = rng.choice((("left of", "right of"), ("above", "below")))
    fact = rng.choice(
        (
            "a square has four sides.",
            "a triangle has three sides.",
            "a circle is round.",
            "a cross has four arms.",
            f"a {red} {circle} is {forward} a {blue} {square}, "
            f"so the {square} is {back} the {circle}.",
            f"a {red} {circle} is {back} a {blue} {square}, "
            f"so the {square} is {forward} the {circle}.",
            f"{_several(more, red, circle)} are more than {_several(few, blue, square)}.",
            f"{_several(few, red, circle)} and {NUMBERS[more - few]} more "
            f"are {_several(more, red, circle)}.",
            f"a {red} {circle} and a {red} {square} have the same color.",
            f"a {red} {circle} and a {blue} {circle} have the same shape.",
            f"the {circle} is {red} and the {square} is {blue}, "
            f"so the {red} shape is the {circle}.",
            f"{red}, {blue} and {green} are colors.",
        )
    )
    return fact[0].upper() + fact[1:]
