"""Rendered pages with small print, drawn from a seed: codes of digits in several font sizes.

A page is 224 pixels wide and has two colors. Its codes of two digits stand in the quarters of the
page, or, in wide print that is twice as large, in its upper and lower half. Reading a code needs
pixels; the color of the larger part of the page needs the whole page. A dense reading, the caption
of a page, is the color and all codes.
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
NUM_DIGITS = 2

_QUARTER = SIDE // 2
# Share of the page that its smaller part takes.
_SMALLER = (0.2, 0.4)


@dataclass(frozen=True)
class Code:
    """Digits in a font of `size` pixels; the first is centered at (x, y).

    Attributes:
        place: The quarter of the page ("top left"), or its half ("top") if the print is wide.
        pitch: Distance between the centers of digits.
    """

    digits: str
    place: str
    size: int
    x: int
    y: int
    pitch: int

    @property
    def text(self) -> str:
        """The digits with spaces between them, which no tokenizer merges."""
        return " ".join(self.digits)


@dataclass(frozen=True)
class Page:
    """Codes in reading order, on two parts of different colors.

    Attributes:
        edge: Width of the smaller part, which is at the left before the page is turned.
        turns: Number of quarter turns of the colors.
    """

    codes: tuple[Code, ...]
    larger: str
    smaller: str
    edge: int
    turns: int

    @property
    def reading(self) -> str:
        """The main color and all codes."""
        return f"{self.larger}. {', '.join(code.text for code in self.codes)}"

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
    for code in page.codes:
        for place, digit in enumerate(code.digits):
            ink = _glyph(digit, code.size)
            top = code.y - len(ink) // 2
            left = code.x + place * code.pitch - ink.shape[1] // 2
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
        # Questions ask for a code, for the color of the larger part, or for either.
        asks: Literal["code", "color", "both"] = "both"
        shift: NonNegativeInt = 6  # Largest shift of a code from the center of its place.
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
            code = rng.choice(page.codes)
            question, answer, kind = f"code {code.place}?", code.text, f"code_{code.size}"
        return {
            "images": [page],
            "question": question,
            "answer": answer,
            "kind": kind,
            "caption": page.reading,
            "page": page,
        }

    def _page(self, rng: random.Random, wide_share: float) -> Page:
        # One kind of print per page: the place of a digit in a dense reading tells its place on the
        # page, which a small model learns from few pages.
        if rng.random() < wide_share:
            codes = [self._code(rng, name, 0, row * _QUARTER, 2) for row, name in enumerate(ROWS)]
        else:
            codes = [
                self._code(rng, f"{name} {side}", column * _QUARTER, row * _QUARTER, 1)
                for row, name in enumerate(ROWS)
                for column, side in enumerate(COLUMNS)
            ]
        larger, smaller = rng.sample(list(COLORS), 2)
        edge = round(rng.uniform(*_SMALLER) * SIDE)
        return Page(tuple(codes), larger, smaller, edge, rng.randrange(4))

    def _code(self, rng: random.Random, place: str, left: int, top: int, scale: int) -> Code:
        """Draws a code for a place of `scale` quarters from (left, top)."""
        cfg = self._config
        digits = "".join(rng.choice("0123456789") for _ in range(NUM_DIGITS))
        pitch = scale * _QUARTER // NUM_DIGITS
        # A narrow code stands in the upper or lower half of its quarter, a wide one in the middle.
        half = pitch if scale == 1 else 0
        x = left + pitch // 2 + rng.randint(-cfg.shift, cfg.shift)
        y = top + (rng.randrange(2) * half + pitch // 2) + rng.randint(-cfg.shift, cfg.shift)
        return Code(digits, place, scale * rng.choice(list(cfg.sizes)), x, y, pitch)


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
