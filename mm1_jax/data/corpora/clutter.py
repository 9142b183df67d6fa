"""Cluttered pictures of a digit or a shape, with several captions and a class, for vision encoders.

    digits   a handwritten digit of any size, color and place among scraps of other digits;
             the class is the digit, 10 classes
    shapes   a large shape among small ones of other colors and forms;
             the class is color and form, 20 classes

A linear probe of the pixels fails on both, because it cannot follow an object that moves and
changes its size (`tests/data/corpora/test_clutter.py` has the accuracies). Held-out digits are
scans that no training picture shows; held-out shapes have companions that no training picture
combines with them.
"""

import enum
import functools
import random
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
from jaxtyping import Float, UInt8

from mm1_jax.batch import Record
from mm1_jax.config import REQUIRED, Required, config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.captions import caption_document
from mm1_jax.data.corpora.digits import DigitsSource
from mm1_jax.data.corpora.embedded import NUMBERS, DrawnSource, Kind
from mm1_jax.data.corpora.scenes import COLORS, SHAPES, Shape, draw_shape
from mm1_jax.field_types import NonNegative, NonNegativeInt

# Prompts of the classes, in the words of captions.
TEMPLATES = ("{c}", "a {c}", "a picture of a {c}", "there is a {c} here")

_CANVAS = 64  # Pixels per side.
_SUPERSAMPLING = 2
_TEST_EVERY = 5


class Subject(enum.Enum):
    """Objects of the pictures of a corpus."""

    DIGITS = "digits"
    SHAPES = "shapes"


CLASSES: dict[Subject, tuple[str, ...]] = {
    Subject.DIGITS: NUMBERS[:10],
    Subject.SHAPES: tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES),
}


@dataclass(frozen=True)
class Scan:
    """A handwritten digit, or a quarter of one, with its color, its center and half its width."""

    index: int
    quarter: int | None
    color: str
    x: int
    y: int
    radius: int


@dataclass(frozen=True)
class Picture:
    """Objects on an uneven ground, from back to front; the subject is the last."""

    objects: tuple[Scan | Shape, ...]
    split: str
    seed: int
    noise: float

    def render(self) -> UInt8[np.ndarray, "64 64 3"]:
        """Renders the picture."""
        rng = np.random.default_rng(self.seed)
        canvas = _ground(rng)
        for each in self.objects:
            if isinstance(each, Scan):
                _draw_scan(canvas, each, self.split)
        shapes = [each for each in self.objects if isinstance(each, Shape)]
        if shapes:
            canvas = _draw_shapes(canvas, shapes)
        canvas += rng.normal(0, self.noise, canvas.shape)
        return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


class ClutterSource(DrawnSource):
    """Captioned pictures of one subject, each with the name of its class.

    Captions of the kind "alt" are short; those of the kind "synthetic" tell color, size, place or
    companions.
    """

    @config_class
    class Config(DrawnSource.Config):
        subject: Required[Subject] = REQUIRED
        max_others: NonNegativeInt = 4  # Most objects beside the subject.
        noise: NonNegative = 8.0  # Standard deviation, in levels of 0 to 255.

    def drawn(self, index: int) -> Record:
        cfg = self._config
        rng = random.Random(f"clutter/{cfg.subject.value}/{self.split}/{cfg.seed}/{index}")
        make = self._digit if cfg.subject is Subject.DIGITS else self._shapes
        name, objects, captions = make(rng)
        picture = Picture(tuple(objects), self.split, rng.getrandbits(32), cfg.noise)
        return {
            "image": picture.render,
            "captions": [{"text": text, "kind": kind} for kind, text in captions.items()],
            "class": name,
        }

    def _digit(self, rng: random.Random) -> tuple[str, list[Scan], dict[str, str]]:
        labels = _scans(self.split).labels
        index = rng.randrange(len(labels))
        digit, name = labels[index], NUMBERS[labels[index]]
        color, radius = rng.choice(list(COLORS)), rng.randint(14, 24)
        x, y = _place(rng, radius)
        others = [
            Scan(
                rng.randrange(len(labels)),
                rng.randrange(4),
                rng.choice(list(COLORS)),
                *_place(rng, 5),
                rng.randint(4, 7),
            )
            for _ in range(rng.randint(self._config.max_others // 2, self._config.max_others))
        ]
        written = rng.choice((name, str(digit)))
        captions = {
            "alt": _alt(rng, written),
            "synthetic": f"a {_size(radius, 19)} {color} {written} {_where(x, y)}",
        }
        return name, [*others, Scan(index, None, color, x, y, radius)], captions

    def _shapes(self, rng: random.Random) -> tuple[str, list[Shape], dict[str, str]]:
        while True:
            color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
            other_color = rng.choice([each for each in COLORS if each != color])
            other_shape = rng.choice([each for each in SHAPES if each != shape])
            key = f"{color}/{shape}/{other_color}/{other_shape}".encode()
            if (zlib.crc32(key) % _TEST_EVERY == 0) == (self.split == "test"):
                break
        radius = rng.randint(10, 17)
        subject = Shape(color, shape, *_place(rng, radius), radius)
        others: list[Shape] = []
        for _ in range(rng.randint(min(1, self._config.max_others), self._config.max_others)):
            small = rng.randint(4, 6)
            place = _free_place(rng, small, [subject, *others])
            if place is not None:
                others.append(Shape(other_color, other_shape, *place, small))
            other_color = rng.choice([each for each in COLORS if each != color])
            other_shape = rng.choice([each for each in SHAPES if each != shape])
        companion = f" with a small {others[0]}" if others else ""
        captions = {
            "alt": _alt(rng, str(subject)),
            "synthetic": f"a {_size(radius, 13)} {subject} {_where(subject.x, subject.y)}"
            + companion,
        }
        return str(subject), [*others, subject], captions


def corpus(subject: Subject, **source: Any) -> Corpus.Config:
    """Returns the corpus of a subject; `source` sets fields of `ClutterSource`."""
    return Corpus.default_config().set(
        name=f"clutter_{subject.value}",
        source=ClutterSource.default_config().set(subject=subject, **source),
        to_document=caption_document,
    )


def _alt(rng: random.Random, name: str) -> str:
    return rng.choice(TEMPLATES).format(c=name)


def _size(radius: int, middle: int) -> str:
    return "large" if radius > middle else "small"


def _where(x: int, y: int) -> str:
    """Returns the place of a point in words, by thirds of the canvas."""
    row = ("at the top", "in the middle", "at the bottom")[y * 3 // _CANVAS]
    column = (" left", "", " right")[x * 3 // _CANVAS]
    return f"{row}{column}"


def _place(rng: random.Random, radius: int) -> tuple[int, int]:
    return rng.randint(radius, _CANVAS - radius), rng.randint(radius, _CANVAS - radius)


def _free_place(
    rng: random.Random, radius: int, taken: list[Shape], tries: int = 20
) -> tuple[int, int] | None:
    """Returns a place apart from the shapes; None if none is found."""
    for _ in range(tries):
        x, y = _place(rng, radius)
        if all(max(abs(x - each.x), abs(y - each.y)) > radius + each.radius for each in taken):
            return x, y
    return None


@functools.cache
def _scans(split: str) -> DigitsSource:
    return DigitsSource.default_config().set(kind=Kind.CAPTIONS).instantiate(split=split)


def _ground(rng: np.random.Generator) -> Float[np.ndarray, "64 64 3"]:
    """Returns a dark gradient in a random direction."""
    low, high = rng.uniform(0, 40, 3), rng.uniform(40, 110, 3)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.indices((_CANVAS, _CANVAS)) / (_CANVAS - 1) - 0.5
    slope = np.clip(0.5 + (np.cos(angle) * x + np.sin(angle) * y) / np.sqrt(2), 0, 1)
    return low + slope[..., None] * (high - low)


def _draw_scan(canvas: np.ndarray, scan: Scan, split: str) -> None:
    """Draws a scan in its color, as opaque as it is bright."""
    gray = PIL.Image.fromarray(_scans(split).pixels[scan.index][..., 0])
    if scan.quarter is not None:
        left, top = 4 * (scan.quarter % 2), 4 * (scan.quarter // 2)
        gray = gray.crop((left, top, left + 4, top + 4))
    side, left, top = 2 * scan.radius, scan.x - scan.radius, scan.y - scan.radius
    alpha = np.asarray(gray.resize((side, side), PIL.Image.Resampling.BICUBIC), float) / 255
    # Scraps may hang over the edge.
    rows, columns = slice(max(top, 0), top + side), slice(max(left, 0), left + side)
    part = canvas[rows, columns]
    alpha = alpha[max(-top, 0) :, max(-left, 0) :][: part.shape[0], : part.shape[1], None]
    part += alpha * (np.array(COLORS[scan.color]) - part)


def _draw_shapes(canvas: np.ndarray, shapes: list[Shape]) -> np.ndarray:
    side = _CANVAS * _SUPERSAMPLING
    picture = PIL.Image.fromarray(canvas.astype(np.uint8))
    picture = picture.resize((side, side), PIL.Image.Resampling.NEAREST)
    draw = PIL.ImageDraw.Draw(picture)
    for shape in shapes:
        draw_shape(draw, shape, _SUPERSAMPLING)
    return np.asarray(picture.reduce(_SUPERSAMPLING), float)
