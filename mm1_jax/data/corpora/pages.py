"""Rendered pages with small print, drawn from a seed: one digit in each quarter, in several sizes.

A page is 224 pixels wide and has two colors. A digit stands in one of the four cells of its
quarter; in wide print, which is twice as large, it stands in one of the two cells of the upper or
lower half. Reading a digit needs pixels; the color of the larger part of the page needs the whole
page. A dense reading, the caption of a page, is the color and all digits with their places.
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

from mm1_jax.batch import Record
from mm1_jax.config import REQUIRED, Required, config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.embedded import TO_DOCUMENT, Kind, num_drawn
from mm1_jax.data.sources.base import Source
from mm1_jax.field_types import NonNegativeInt, PositiveInt, Seed, Share

SIDE = 224  # Pixels; the unit of all sizes below.
# Dark, so that white print is legible on all of them.
COLORS = {"red": (130, 20, 20), "green": (15, 95, 30), "blue": (25, 40, 150)}
COLUMNS, ROWS = ("left", "right"), ("top", "bottom")
COLOR_QUESTION = "what is the main color?"
DIGITS = "0123456789"

_QUARTER = SIDE // 2
_CELL = SIDE // 4
# Share of the page that its smaller part takes.
_SMALLER = (0.2, 0.4)


@dataclass(frozen=True)
class Print:
    """A digit in a font of `size` pixels, centered at (x, y).

    Attributes:
        place: The quarter of the page ("top left"), or its half ("top") if the print is wide.
    """

    digit: str
    place: str
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
    def reading(self) -> str:
        """The main color and all digits."""
        digits = (f"{each.place} {each.digit}" for each in self.prints)
        return f"{self.larger}. {', '.join(digits)}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture, which tilings ask for without rendering it."""
        return SIDE, SIDE

    def __call__(self) -> UInt8[np.ndarray, "224 224 3"]:
        """Renders the page."""
        return _rendered(self)


@functools.lru_cache(maxsize=4)
def _rendered(page: Page) -> UInt8[np.ndarray, "224 224 3"]:
    """Renders a page once for all of its tiles."""
    ground = np.empty((SIDE, SIDE, 3), np.uint8)
    ground[:] = COLORS[page.larger]
    ground[:, : page.edge] = COLORS[page.smaller]
    pixels = np.ascontiguousarray(np.rot90(ground, page.turns))
    for each in page.prints:
        ink = _glyph(each.digit, each.size)
        top, left = each.y - len(ink) // 2, each.x - ink.shape[1] // 2
        box = pixels[top : top + len(ink), left : left + ink.shape[1]]
        # White print: each pixel moves toward 255 by its share of ink.
        box += ((255 - box) * ink).astype(np.uint8)
    return pixels


class PagesSource(Source):
    """Dense readings of pages, or questions about pages without wide print."""

    @config_class
    class Config(Source.Config):
        kind: Required[Kind] = REQUIRED  # CAPTIONS or QUESTIONS
        num_records: PositiveInt = 65_536  # In the training split.
        sizes: Sequence[PositiveInt] = (8, 12, 16, 24)  # Fonts; wide print is twice as large.
        # Share of the pages in wide print, in dense readings.
        wide_share: Share = 0.5
        # Questions ask for a digit, for the color of the larger part, or for either.
        asks: Literal["digit", "color", "both"] = "both"
        shift: NonNegativeInt = 6  # Largest shift of a digit from the center of its cell.
        seed: Seed = 0

    def __init__(self, cfg: Config, *, split: str):
        super().__init__(cfg, split=split)
        if cfg.kind not in TO_DOCUMENT or cfg.kind not in (Kind.CAPTIONS, Kind.QUESTIONS):
            raise ValueError(f"kind={cfg.kind}: pages have CAPTIONS and QUESTIONS")

    def __len__(self) -> int:
        return num_drawn(self._config.num_records, self.split)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        cfg = self._config
        rng = random.Random(f"pages/{cfg.kind.value}/{self.split}/{cfg.seed}/{index}")
        if cfg.kind is Kind.CAPTIONS:
            page = self._page(rng, cfg.wide_share)
            return {"image": page, "caption": page.reading, "page": page}
        page = self._page(rng, 0.0)
        if cfg.asks == "color" or (cfg.asks == "both" and rng.random() < 1 / 4):
            question, answer, kind = COLOR_QUESTION, page.larger, "color"
        else:
            each = rng.choice(page.prints)
            question, answer, kind = f"{each.place}?", each.digit, f"digit_{each.size}"
        return {
            "images": [page],
            "question": question,
            "answer": answer,
            "kind": kind,
            "caption": page.reading,
            "page": page,
        }

    def _page(self, rng: random.Random, wide_share: float) -> Page:
        if rng.random() < wide_share:
            prints = [self._print(rng, name, 0, row, 2) for row, name in enumerate(ROWS)]
        else:
            prints = [
                self._print(rng, f"{name} {side}", column, row, 1)
                for row, name in enumerate(ROWS)
                for column, side in enumerate(COLUMNS)
            ]
        larger, smaller = rng.sample(list(COLORS), 2)
        edge = round(rng.uniform(*_SMALLER) * SIDE)
        return Page(tuple(prints), larger, smaller, edge, rng.randrange(4))

    def _print(self, rng: random.Random, place: str, column: int, row: int, scale: int) -> Print:
        """Draws a digit in a cell of `scale` times the size, within a quarter or half."""
        cfg = self._config
        cell = scale * _CELL
        left = column * _QUARTER + cell * rng.randrange(2)
        # A half has one row of cells that are twice as large, a quarter has two rows.
        top = row * _QUARTER + cell * rng.randrange(3 - scale)
        x, y = (start + cell // 2 + rng.randint(-cfg.shift, cfg.shift) for start in (left, top))
        return Print(rng.choice(DIGITS), place, scale * rng.choice(list(cfg.sizes)), x, y)


def corpus(kind: Kind, **source: Any) -> Corpus.Config:
    """Returns the corpus of a kind; `source` sets fields of `PagesSource`."""
    return Corpus.default_config().set(
        name=f"pages_{kind.value}",
        source=PagesSource.default_config().set(kind=kind, **source),
        to_document=TO_DOCUMENT[kind],
    )


@functools.cache
def _glyph(digit: str, size: int) -> Float[np.ndarray, "h w 1"]:
    """Returns the share of ink of each pixel of a digit, in the font that ships with Pillow."""
    font = PIL.ImageFont.load_default(size)
    left, top, right, bottom = map(round, font.getbbox(digit))
    picture = PIL.Image.new("L", (right - left, bottom - top))
    PIL.ImageDraw.Draw(picture).text((-left, -top), digit, 255, font)
    return np.asarray(picture, np.float32)[..., None] / 255
