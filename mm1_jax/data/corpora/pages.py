"""Rendered pages with small print, drawn from a seed: a digit in each quarter, in several sizes.

A page is 112 pixels wide and has two colors. Its quarters are called a, b, c and d in reading
order, and have four cells each. A digit stands in one of the cells, and small print in the upper
left quarter of its cell. Patches of 14 pixels therefore cut no digit, at 56 pixels or at 112, and
neither do tiles. Reading a digit needs pixels; the color of the larger part of the page needs the
whole page.

A dense reading asks for everything on a page in random order, and a question for one thing:

    image "c" 7 "color" red "a" 0 "d" 3 "b" 7
    image "c" 7
"""

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from jaxtyping import Float, UInt8

from mm1_jax.batch import Document, Image, Record, Text
from mm1_jax.config import REQUIRED, Required, config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.embedded import DrawnSource, Kind
from mm1_jax.field_types import NonNegativeInt, PositiveInt, Share

SIDE = 112  # Pixels; the unit of all sizes below.
# Dark, so that white print is legible on all of them.
COLORS = {"red": (70, 0, 0), "green": (0, 50, 0), "blue": (0, 0, 80)}
QUARTERS = "abcd"
COLOR = "color"
DIGITS = "0123456789"

_CELL, _SMALL_CELL = SIDE // 4, SIDE // 8
# Largest fonts, in pixels; a digit is about three quarters as high, and has room to move.
_LARGEST, _LARGEST_SMALL = 24, 12
# Glyphs are drawn this many times larger and averaged, because fonts of a few pixels are not
# legible when they are drawn directly.
_OVERSAMPLING = 8
# Share of the page that its smaller part takes.
_SMALLER = (0.2, 0.4)


@dataclass(frozen=True)
class Print:
    """A digit in a font of `size` pixels, centered at (x, y)."""

    digit: str
    quarter: str
    size: int
    x: int
    y: int


@dataclass(frozen=True)
class Page:
    """Digits in reading order, on two parts of different colors.

    Attributes:
        edge: Width of the smaller part, which is at the left before the page is turned.
        turns: Number of quarter turns of the colors.
    """

    prints: tuple[Print, ...]
    larger: str
    smaller: str
    edge: int
    turns: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture, which tilings ask for without rendering it."""
        return SIDE, SIDE

    def __call__(self) -> UInt8[np.ndarray, "112 112 3"]:
        """Renders the page."""
        return _rendered(self)


@functools.lru_cache(maxsize=4)
def _rendered(page: Page) -> UInt8[np.ndarray, "112 112 3"]:
    """Renders a page once for all of its tiles."""
    ground = np.empty((SIDE, SIDE, 3), np.uint8)
    ground[:] = COLORS[page.larger]
    ground[:, : page.edge] = COLORS[page.smaller]
    pixels = np.ascontiguousarray(np.rot90(ground, page.turns))
    for each in page.prints:
        ink = glyph(each.digit, each.size)
        top, left = each.y - len(ink) // 2, each.x - ink.shape[1] // 2
        box = pixels[top : top + len(ink), left : left + ink.shape[1]]
        # White print: each pixel moves toward 255 by its share of ink.
        box += ((255 - box) * ink).astype(np.uint8)
    return pixels


class PagesSource(DrawnSource):
    """Dense readings of pages (CAPTIONS), or questions about them (QUESTIONS)."""

    @config_class
    class Config(DrawnSource.Config):
        kind: Required[Kind] = REQUIRED  # CAPTIONS or QUESTIONS
        num_records: PositiveInt = 65_536  # In the training split.
        sizes: Sequence[PositiveInt] = (6, 8, 12)  # Fonts in pixels, at most 24.
        asks: Literal["digit", "color"] = "digit"  # Subject of questions.
        # Largest shift of a digit from the center of its small cell; twice as large in a whole one.
        shift: NonNegativeInt = 2
        # Share of the pages in dense readings that have one digit in all quarters, and ask for it
        # once, so that reading can be learned before the places are known.
        repeated_share: Share = 0.0

    def __init__(self, cfg: Config, *, split: str):
        super().__init__(cfg, split=split)
        if cfg.kind not in (Kind.CAPTIONS, Kind.QUESTIONS):
            raise ValueError(f"kind={cfg.kind}: pages have CAPTIONS and QUESTIONS")
        if not cfg.sizes or max(cfg.sizes) > _LARGEST:
            raise ValueError(f"sizes={cfg.sizes}: expected fonts of 1 to {_LARGEST} pixels")

    def drawn(self, index: int) -> Record:
        cfg = self._config
        rng = random.Random(f"pages/{cfg.kind.value}/{self.split}/{cfg.seed}/{index}")
        page = self._page(rng)
        kinds = {each.quarter: f"digit_{each.size}" for each in page.prints} | {COLOR: COLOR}
        answers = {each.quarter: each.digit for each in page.prints} | {COLOR: page.larger}
        if cfg.kind is Kind.CAPTIONS:
            asked = rng.sample(list(answers), len(answers))
            if len({each.digit for each in page.prints}) == 1:
                # Further digits could be copied from the first.
                asked = [rng.choice(QUARTERS), COLOR]
        else:
            asked = [COLOR if cfg.asks == "color" else rng.choice(QUARTERS)]
        return {
            "image": page,
            "reading": [(name, answers[name]) for name in asked],
            "kind": kinds[asked[0]],
        }

    def _page(self, rng: random.Random) -> Page:
        digits = [rng.choice(DIGITS) for _ in QUARTERS]
        if rng.random() < self._config.repeated_share:
            digits = digits[:1] * len(digits)
        prints = tuple(self._print(rng, *each) for each in enumerate(digits))
        larger, smaller = rng.sample(list(COLORS), 2)
        edge = round(rng.uniform(*_SMALLER) * SIDE)
        return Page(prints, larger, smaller, edge, rng.randrange(4))

    def _print(self, rng: random.Random, index: int, digit: str) -> Print:
        """Draws size and place of a digit in the quarter of this index."""
        cfg = self._config
        size = rng.choice(list(cfg.sizes))
        cell = _SMALL_CELL if size <= _LARGEST_SMALL else _CELL
        shift = cfg.shift * cell // _SMALL_CELL
        x, y = (
            _CELL * (2 * quarter + rng.randrange(2)) + cell // 2 + rng.randint(-shift, shift)
            for quarter in (index % 2, index // 2)
        )
        return Print(digit, QUARTERS[index], size, x, y)


def reading_document(record: Record) -> Document:
    """Returns the page, and the names of things on it, each followed by what it reads."""
    texts = [(Text(name, scored=False), Text(answer)) for name, answer in record["reading"]]
    return Document((Image(record["image"]), *(text for pair in texts for text in pair)))


def corpus(kind: Kind, **source: Any) -> Corpus.Config:
    """Returns the corpus of a kind; `source` sets fields of `PagesSource`."""
    return Corpus.default_config().set(
        name=f"pages_{kind.value}",
        source=PagesSource.default_config().set(kind=kind, **source),
        to_document=reading_document,
    )


@functools.cache
def glyph(letter: str, size: int) -> Float[np.ndarray, "h w 1"]:
    """Returns the share of ink of each pixel of a letter, in the font that ships with Pillow."""
    font = PIL.ImageFont.load_default(size * _OVERSAMPLING)
    left, top, right, bottom = map(round, font.getbbox(letter))
    # A whole number of pixels after the averaging.
    width, height = (-(-side // _OVERSAMPLING) for side in (right - left, bottom - top))
    picture = PIL.Image.new("L", (width * _OVERSAMPLING, height * _OVERSAMPLING))
    PIL.ImageDraw.Draw(picture).text((-left, -top), letter, 255, font)
    return np.asarray(picture.reduce(_OVERSAMPLING), np.float32)[..., None] / 255
