"""The small world: pictures of objects, signs and beings on a grid, drawn from a seed.

A picture of 64 pixels has 4 x 4 cells. It holds objects with a shape, a color, a size and a
pattern; a sign with a short word in small print; or a being, a fixed mirror-symmetric figure with a
name. The facts about beings are in `world_texts`, and the records of all corpora in
`world_records`.

Each part of a picture belongs to one split: the combination of its objects, its word, and the being
with its color. A picture of a split has only parts of that split, so that no held-out combination
is ever trained on, whatever the seed and the kind of corpus.
"""

import functools
import random
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import PIL.Image
import PIL.ImageDraw
from jaxtyping import Bool, Float, UInt8

from mm1_jax.data.corpora.pages import glyph
from mm1_jax.data.corpora.scenes import COLORS, SHAPES, Shape, draw_shape

SIDE = 64  # Pixels; the unit of all sizes below.
GRID = 4  # Cells per side.
PATTERNS = ("plain", "lined", "dotted", "checked")
SIZES = ("small", "large")
MAX_COUNT = 8
# Words are spelled consonant, vowel, consonant; the tokenizer has one piece for each capital.
CONSONANTS, VOWELS = "BCFHLSTZ", "AEIO"
WORD_LENGTH = 3
# Beings that can be drawn. Texts alone state the facts about those in the second half of the list.
NUM_BEINGS = 16

_CELL = SIDE // GRID
_RADII = {"small": (6, 7), "large": (13, 14)}  # Half the width of objects; a being is as large.
_SUPERSAMPLING = 4
_TEST_EVERY = 5
# Share of the color that the dark places of a pattern keep.
_DARK = 0.25
_FIGURE = 5  # Cells per side of the figure of a being.
_FIGURE_SCALE = 5  # Pixels of each.
_PLATE = 70  # Gray of the plate of a sign.

Part = TypeVar("Part")


@dataclass(frozen=True)
class Look:
    """All that words say about an object, except its place."""

    color: str
    shape: str
    size: str
    pattern: str


@dataclass(frozen=True)
class Thing:
    """An object, centered at (x, y), with half its width."""

    look: Look
    x: int
    y: int
    radius: int


@dataclass(frozen=True)
class Sign:
    """A word in a font of `size` pixels on a plate of one row of cells, from the cell `column`.

    Attributes:
        shifts: The shift of each letter from the center of its cell, right and down.
    """

    word: str
    size: int
    column: int
    row: int
    shifts: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Being:
    """A being by its number, as large as a large object."""

    number: int
    color: str
    x: int
    y: int


@dataclass(frozen=True)
class Picture:
    """Objects, sign and being of a picture, which renders itself when called."""

    things: tuple[Thing, ...]
    sign: Sign | None
    being: Being | None
    ground: int
    noise: float
    seed: int

    def __call__(self) -> UInt8[np.ndarray, "64 64 3"]:
        """Renders the picture."""
        canvas = np.full((SIDE, SIDE, 3), self.ground, np.float32)
        for thing in self.things:
            look = thing.look
            mask = _object_mask(look.shape, look.pattern, thing.radius)
            _paint(canvas, mask, look.color, thing.x, thing.y)
        if self.sign is not None:
            _paint_sign(canvas, self.sign)
        if self.being is not None:
            mask = np.kron(figure(self.being.number), np.ones((_FIGURE_SCALE, _FIGURE_SCALE)))
            _paint(canvas, mask[..., None], self.being.color, self.being.x, self.being.y)
        if self.noise:
            rng = np.random.default_rng(self.seed)
            canvas += self.noise * rng.standard_normal(canvas.shape, np.float32)
        return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)

    @property
    def splits(self) -> set[str]:
        """The splits of its parts."""
        held_out = []
        if self.things:
            held_out.append(is_test_combination([thing.look for thing in self.things]))
        if self.sign is not None:
            held_out.append(is_test_word(self.sign.word))
        if self.being is not None:
            held_out.append(is_test_being(self.being.number, self.being.color))
        return {"test" if each else "train" for each in held_out}


class Painter:
    """Draws pictures of one split.

    Args:
        print_sizes: Fonts of signs in pixels.
        noise: Standard deviation of the noise of pixels, in levels of 0 to 255.
    """

    def __init__(self, split: str, print_sizes: tuple[int, ...], noise: float):
        self._split, self._print_sizes, self._noise = split, print_sizes, noise

    def _accept(self, draw: Callable[[], Part], is_test: Callable[[Part], bool]) -> Part:
        """Draws until the part belongs to the split."""
        while is_test(drawn := draw()) != (self._split == "test"):
            pass
        return drawn

    def objects(self, rng: random.Random, count: int) -> Picture:
        """Draws objects that differ in both color and shape, so that either names one of them."""

        def draw() -> list[Look]:
            colors, shapes = rng.sample(list(COLORS), count), rng.sample(SHAPES, count)
            sizes = [rng.choice(SIZES) for _ in range(count)]
            return [
                Look(color, shape, size, rng.choice(PATTERNS))
                for color, shape, size in zip(colors, shapes, sizes, strict=True)
            ]

        return self._picture(rng, self._accept(draw, is_test_combination))

    def crowd(self, rng: random.Random, count: int, num_others: int) -> Picture:
        """Draws `count` equal small objects first, then others, which equal one another."""

        def draw() -> list[Look]:
            # Others of the same color or shape can only be told apart by both.
            alike = rng.choice(("color", "shape", "neither", "neither"))
            colors, shapes = rng.sample(list(COLORS), 2), rng.sample(SHAPES, 2)
            colors = colors[:1] * 2 if alike == "color" else colors
            shapes = shapes[:1] * 2 if alike == "shape" else shapes
            looks = [Look(*pair, "small", "plain") for pair in zip(colors, shapes, strict=True)]
            return looks[:1] * count + looks[1:] * num_others

        return self._picture(rng, self._accept(draw, is_test_combination))

    def sign(self, rng: random.Random, num_objects: int) -> Picture:
        """Draws a sign with a word beside small objects."""

        def draw() -> str:
            return "".join(map(rng.choice, (CONSONANTS, VOWELS, CONSONANTS)))

        looks = self._companions(rng, num_objects)
        return self._picture(rng, looks, word=self._accept(draw, is_test_word))

    def being(self, rng: random.Random, number: int | None, num_objects: int) -> Picture:
        """Draws a being beside small objects; a random one if `number` is None."""

        def draw() -> tuple[int, str]:
            each = rng.randrange(NUM_BEINGS) if number is None else number
            return each, rng.choice(list(COLORS))

        looks = self._companions(rng, num_objects)
        return self._picture(
            rng, looks, being=self._accept(draw, lambda each: is_test_being(*each))
        )

    def _companions(self, rng: random.Random, count: int) -> list[Look]:
        def draw() -> list[Look]:
            return [
                Look(rng.choice(list(COLORS)), rng.choice(SHAPES), "small", rng.choice(PATTERNS))
                for _ in range(count)
            ]

        return self._accept(draw, is_test_combination) if count else []

    def _picture(
        self,
        rng: random.Random,
        looks: list[Look],
        word: str | None = None,
        being: tuple[int, str] | None = None,
    ) -> Picture:
        while (places := _places(rng, looks, word is not None, being is not None)) is None:
            pass
        things = []
        for look, (column, row) in zip(looks, places, strict=False):
            cells = 2 if look.size == "large" else 1
            shift = 2 if look.size == "large" else 1
            x, y = (
                int(_CELL * (each + cells / 2)) + rng.randint(-shift, shift)
                for each in (column, row)
            )
            things.append(Thing(look, x, y, rng.choice(_RADII[look.size])))
        sign = figure_of = None
        last = places[-1] if places else (0, 0)
        if word is not None:
            shifts = tuple((rng.randint(-1, 1), rng.randint(-1, 1)) for _ in word)
            sign = Sign(word, rng.choice(self._print_sizes), *last, shifts)
        if being is not None:
            x, y = (_CELL * (each + 1) + rng.randint(-2, 2) for each in last)
            figure_of = Being(*being, x, y)
        seed = rng.getrandbits(32)
        return Picture(tuple(things), sign, figure_of, rng.randint(8, 48), self._noise, seed)


def is_test_combination(looks: list[Look]) -> bool:
    """Returns True if a combination of objects, in any order, belongs to the test split."""
    return _is_test(sorted(Counter(map(repr, looks)).items()))


def is_test_word(word: str) -> bool:
    """Returns True if a word belongs to the test split."""
    return _is_test(word)


def is_test_being(number: int, color: str) -> bool:
    """Returns True if a being in a color belongs to the test split, as each does in one color."""
    return color == list(COLORS)[number % len(COLORS)]


def _is_test(part: object) -> bool:
    return zlib.crc32(repr(part).encode()) % _TEST_EVERY == 0


def relation(thing: Thing, other: Thing) -> str | None:
    """Returns the direction of `thing` from `other`; None if two directions are about as good."""
    dx, dy = thing.x - other.x, thing.y - other.y
    if abs(abs(dx) - abs(dy)) < _CELL // 2:
        return None
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


@functools.cache
def figure(number: int) -> Bool[np.ndarray, "5 5"]:
    """Returns the figure of a being; two figures differ in at least four cells of their halves."""
    taken = [figure(each) for each in range(number)]
    rng = random.Random(f"being/{number}")
    half = _FIGURE // 2 + 1
    while True:
        left = np.array([[rng.random() < 0.55 for _ in range(half)] for _ in range(_FIGURE)])
        drawn = np.concatenate([left, left[:, : half - 1][:, ::-1]], axis=1)
        if all((left != each[:, :half]).sum() >= 4 for each in taken) and 8 <= drawn.sum() <= 18:
            return drawn


def _places(
    rng: random.Random, looks: list[Look], has_word: bool, has_being: bool
) -> list[tuple[int, int]] | None:
    """Returns the first cells of the objects and of sign or being, the last; None if they overlap.

    Large ones are placed first, as they need more room.
    """
    sizes = [(2, 2) if look.size == "large" else (1, 1) for look in looks]
    if has_word:
        sizes.append((WORD_LENGTH, 1))
    if has_being:
        sizes.append((2, 2))
    free = np.ones((GRID, GRID), bool)
    places: list[tuple[int, int]] = [(0, 0)] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i][0] * sizes[i][1]):
        width, height = sizes[index]
        open_cells = [
            (column, row)
            for row in range(GRID - height + 1)
            for column in range(GRID - width + 1)
            if free[row : row + height, column : column + width].all()
        ]
        if not open_cells:
            return None
        column, row = places[index] = rng.choice(open_cells)
        free[row : row + height, column : column + width] = False
    return places


def _paint(canvas: np.ndarray, mask: np.ndarray, color: str, x: int, y: int) -> None:
    """Paints a mask of opacities in a color, centered at (x, y), cut at the edges."""
    top, left = y - mask.shape[0] // 2, x - mask.shape[1] // 2
    part = canvas[max(top, 0) : top + mask.shape[0], max(left, 0) : left + mask.shape[1]]
    mask = mask[max(-top, 0) :, max(-left, 0) :][: part.shape[0], : part.shape[1]]
    part += mask * (np.asarray(COLORS[color], np.float32) - part)


def _paint_sign(canvas: np.ndarray, sign: Sign) -> None:
    """Paints a plate, and white letters, one per cell."""
    top, left = sign.row * _CELL + 1, sign.column * _CELL + 1
    canvas[top : top + _CELL - 2, left : left + WORD_LENGTH * _CELL - 2] = _PLATE
    for place, (letter, (right, down)) in enumerate(zip(sign.word, sign.shifts, strict=True)):
        x = (sign.column + place) * _CELL + _CELL // 2 + right
        y = sign.row * _CELL + _CELL // 2 + down
        _paint(canvas, glyph(letter, sign.size), "white", x, y)


@functools.cache
def _object_mask(shape: str, pattern: str, radius: int) -> Float[np.ndarray, "s s 1"]:
    """Returns the opacity of each pixel of an object, with antialiased edges."""
    side = (2 * radius + 1) * _SUPERSAMPLING
    picture = PIL.Image.new("RGB", (side, side))
    center = side // 2 // _SUPERSAMPLING
    draw_shape(
        PIL.ImageDraw.Draw(picture), Shape("white", shape, center, center, radius), _SUPERSAMPLING
    )
    mask = np.asarray(picture.reduce(_SUPERSAMPLING), np.float32)[..., :1] / 250
    # Lines of one pixel in small objects, and of two in large ones.
    width = 1 if radius in _RADII["small"] else 2
    y, x = np.indices(mask.shape[:2]) // width % 2 == 1
    is_dark = {
        "plain": np.zeros_like(x),
        "lined": y,
        "dotted": x & y,
        "checked": x ^ y,
    }[pattern]
    return mask * np.where(is_dark, _DARK, 1.0)[..., None].astype(np.float32)
