"""Boxes and points: conventions of datasets, and the text in which a model reads and writes them.

A box is `(x0, y0, x1, y1)` and a point `(x, y)`, both as fractions of the original picture, after
its EXIF orientation is applied: `(0, 0)` is the upper left corner, `(1, 1)` the lower right one.
Records hold these fractions, so nothing depends on padding, resizing or tiles.

A `Frame` converts between fractions and a dataset's convention or the pixels that a model sees:

    percent = Frame(0, 0, 100, 100)
    percent.fractions([25, 50])                            # (0.25, 0.5)
    padded_square(640, 480).fractions([0.1, 0.2, 0.5, 0.8])  # of LLaVA's padded picture

`Coordinates` writes them as text (MM1.5, section on referring and grounding; Ferret) and reads
answers.
"""

import functools
import math
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mm1_jax.batch import View
from mm1_jax.config import Configurable, config_class
from mm1_jax.data.record_files import BOX, POINT, BadRecord
from mm1_jax.field_types import NonNegativeInt, Positive

Box = tuple[float, float, float, float]
Point = tuple[float, float]

# Boxes of published sets exceed the picture by rounding; more than this share of it is an error.
_TOLERANCE = 0.02


@dataclass(frozen=True)
class Frame:
    """The rectangle that a picture occupies in some coordinates, such as pixels of a view.

    Attributes:
        left: The x coordinate of the left edge of the picture; negative if a view cuts it off.
        top: The y coordinate of its upper edge.
        width: Its width in these coordinates.
        height: Its height in these coordinates.
    """

    left: int | float
    top: int | float
    width: int | float
    height: int | float

    def coordinates(self, fractions: Sequence[int | float]) -> tuple[float, ...]:
        """Returns a box or point, given in fractions of the picture, in these coordinates."""
        edges = ((self.left, self.width), (self.top, self.height))
        return tuple(start + size * x for x, (start, size) in _with_axes(fractions, edges))

    def fractions(self, coordinates: Sequence[int | float]) -> tuple[float, ...]:
        """Returns a box or point in fractions of the picture; the inverse of `coordinates`."""
        edges = ((self.left, self.width), (self.top, self.height))
        return tuple((x - start) / size for x, (start, size) in _with_axes(coordinates, edges))


# Conventions that do not depend on the size of the picture.
FRACTIONS = Frame(0, 0, 1, 1)  # "norm1" of ms-swift
PERCENT = Frame(0, 0, 100, 100)  # PixMo
THOUSANDTHS = Frame(0, 0, 1000, 1000)  # InternVL


def pixels(width: int, height: int) -> Frame:
    """Returns the frame of pixels of the original picture: COCO, "real" of ms-swift."""
    return Frame(0, 0, width, height)


def padded_square(width: int, height: int) -> Frame:
    """Returns the frame of fractions of the picture padded to a square: LLaVA.

    LLaVA pads after rounding half of the margin down to a pixel.
    """
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    return Frame(left / side, top / side, width / side, height / side)


def resized_pixels(
    width: int,
    height: int,
    *,
    factor: int = 28,
    min_pixels: int = 56 * 56,
    max_pixels: int = 14 * 14 * 4 * 1280,
) -> Frame:
    """Returns the frame of pixels of the resized picture: Qwen2.5-VL.

    Args:
        factor: Both sides become multiples of it, two patches of 14 pixels in Qwen2.5-VL.
        min_pixels: Smaller pictures are enlarged; must be that of the data, as is `max_pixels`.
    """
    sides = [max(factor, round(side / factor) * factor) for side in (width, height)]
    if sides[0] * sides[1] > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        sides = [
            max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height)
        ]
    elif sides[0] * sides[1] < min_pixels:
        enlarge = math.sqrt(min_pixels / (width * height))
        sides = [math.ceil(side * enlarge / factor) * factor for side in (width, height)]
    return Frame(0, 0, *sides)


def view_frame(view: View, width: int, height: int) -> Frame:
    """Returns the frame of fractions of a tile, in which a box may lie partly or wholly outside."""
    columns, rows = float(view.columns), float(view.rows)
    if not view.pads:
        return Frame(-view.column, -view.row, columns, rows)
    scale = min(columns / width, rows / height)
    inner_width, inner_height = width * scale, height * scale
    left, top = (columns - inner_width) / 2, (rows - inner_height) / 2
    return Frame(left - view.column, top - view.row, inner_width, inner_height)


def box_of_corner_and_size(values: Sequence[int | float]) -> tuple[int | float, ...]:
    """Returns the corners of a box given as `(x, y, width, height)`: COCO."""
    x, y, width, height = values
    return x, y, x + width, y + height


def region(values: Any, frame: Frame = FRACTIONS) -> tuple[float, ...]:
    """Returns a box or point of a dataset as fractions of the picture.

    Coordinates outside of the picture by no more than 2% of its side are moved to its edge.

    Raises:
        BadRecord: The values are not two or four finite numbers, the corners of a box are in
            another order, or the region lies outside of the picture.
    """
    if not isinstance(values, Sequence) or len(values) not in (2, 4):
        raise BadRecord(f"region {values!r:.80}: expected (x0, y0, x1, y1) or (x, y)")
    if not all(_is_finite(x) for x in values):
        raise BadRecord(f"region {values!r:.80}: expected finite numbers")
    found = frame.fractions(values)
    if not all(-_TOLERANCE <= x <= 1 + _TOLERANCE for x in found):
        shown = ", ".join(f"{x:.3g}" for x in found)
        raise BadRecord(f"region {list(values)} is outside of the picture: fractions ({shown})")
    if len(found) == 4 and (found[0] > found[2] or found[1] > found[3]):
        raise BadRecord(f"box {list(values)}: expected x0 <= x1 and y0 <= y1")
    return tuple(min(max(x, 0.0), 1.0) for x in found)


class Coordinates(Configurable):
    """Writes boxes and points as text and reads them in answers.

    The default is Ferret's: `[x0, y0, x1, y1]`, integers from 0 to 999. InternVL's is

        Coordinates.default_config().set(
            full=1000, box="<box>[[{x0}, {y0}, {x1}, {y1}]]</box>", point="[[{x}, {y}]]"
        )

    and fractions with two decimals are `set(full=1, decimals=2)`.
    """

    @config_class
    class Config(Configurable.Config):
        # The number that stands for the right and the lower edge of the picture.
        full: Positive = 999
        # Number of decimals.
        decimals: NonNegativeInt = 0
        # Texts of a box and of a point, with the names of their coordinates in braces.
        box: str = "[{x0}, {y0}, {x1}, {y1}]"
        point: str = "[{x}, {y}]"

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        self._patterns = {
            name: _pattern(f"coordinates.{name}", getattr(cfg, name), fields)
            for name, fields in (("box", ("x0", "y0", "x1", "y1")), ("point", ("x", "y")))
        }

    def write(self, region: Sequence[int | float]) -> str:
        """Returns the text of a box or of a point, given in fractions of the picture."""
        cfg = self._config
        names = ("x", "y") if len(region) == 2 else ("x0", "y0", "x1", "y1")
        template = cfg.point if len(region) == 2 else cfg.box
        numbers = (f"{x * cfg.full:.{cfg.decimals}f}" for x in region)
        return template.format(**dict(zip(names, numbers, strict=True)))

    def write_entry(self, entry: Mapping[str, Any]) -> str:
        """Returns the text of an entry of a record's `boxes`, a `box` or a `point`.

        Raises:
            BadRecord: The entry has neither, or invalid coordinates.
        """
        values = entry.get("box") or entry.get("point")
        if values is None:
            raise BadRecord(f"boxes: the entry {dict(entry)!r:.80} has neither a box nor a point")
        return self.write(region(values))

    def box(self, answer: str) -> Box:
        """Returns the box of an answer that consists of one box.

        Raises:
            ValueError: The answer is something else; the message says what.
        """
        x0, y0, x1, y1 = self._only("box", answer)
        return x0, y0, x1, y1

    def point(self, answer: str) -> Point:
        """Returns the point of an answer that consists of one point.

        Raises:
            ValueError: The answer is something else; the message says what.
        """
        x, y = self._only("point", answer)
        return x, y

    def boxes(self, text: str) -> list[Box]:
        """Returns all boxes in a text, in order. Raises ValueError if one of them is invalid."""
        return [
            (x0, y0, x1, y1)
            for x0, y0, x1, y1 in map(self._fractions, self._patterns["box"].finditer(text))
        ]

    def extract(self, text: str, frame: Frame | None = None) -> tuple[str, list[tuple[float, ...]]]:
        """Replaces the boxes and points in a text by `<box>` and `<point>`, as records hold them.

        Args:
            frame: The convention of the text; None means that of this config.

        Returns:
            The text, and the boxes and points in order, as fractions of the picture.
        """
        frame = frame or Frame(0, 0, self._config.full, self._config.full)
        found = []

        def replace(name: str, match: re.Match) -> str:
            found.append((match.start(), region(tuple(map(float, match.groups())), frame)))
            # A placeholder as long as the box, so that the places of points do not change.
            return name.ljust(match.end() - match.start(), "\0")

        for name, kind in ((BOX, "box"), (POINT, "point")):
            text = self._patterns[kind].sub(functools.partial(replace, name), text)
        return text.replace("\0", ""), [values for _, values in sorted(found)]

    def _only(self, kind: str, answer: str) -> tuple[float, ...]:
        text = answer.strip().removesuffix(".")
        match = self._patterns[kind].fullmatch(text)
        if match is None:
            template = getattr(self._config, kind)
            raise ValueError(f"answer {answer!r:.80}: expected one {kind} written as {template}")
        return self._fractions(match)

    def _fractions(self, match: re.Match) -> tuple[float, ...]:
        full = self._config.full
        numbers = tuple(map(float, match.groups()))
        if not all(0 <= x <= full for x in numbers):
            raise ValueError(f"{match[0]}: expected numbers from 0 to {full:g}")
        if len(numbers) == 4 and (numbers[0] > numbers[2] or numbers[1] > numbers[3]):
            raise ValueError(f"{match[0]}: expected x0 <= x1 and y0 <= y1")
        return tuple(x / full for x in numbers)


def iou(a: Sequence[int | float], b: Sequence[int | float]) -> float:
    """Returns the area that two boxes share, as a fraction of the area that they cover together.

    The unit of each axis does not matter. Two boxes without an area have an IoU of 0.
    """
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    covered = _area(a) + _area(b) - shared
    return shared / covered if covered > 0 else 0.0


def is_inside(point: Sequence[int | float], box: Sequence[int | float]) -> bool:
    """Returns whether a point lies in a box or on its edge."""
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def _area(box: Sequence[int | float]) -> int | float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _with_axes(values: Sequence[int | float], edges: tuple[Any, Any]) -> Iterator[Any]:
    """Pairs coordinates, which alternate between x and y, with the edges of their axis."""
    return ((float(x), edges[i % 2]) for i, x in enumerate(values))


def _is_finite(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # JSON has integers that no float holds.
        return False


def _pattern(field: str, template: str, names: Sequence[str]) -> re.Pattern:
    """Returns the pattern of a text that is written by a template, with any space after a comma."""
    parts = list(string.Formatter().parse(template))
    found = [name for _, name, _, _ in parts if name is not None]
    if found != list(names):
        raise ValueError(
            f"{field}={template!r}: expected {', '.join(f'{{{name}}}' for name in names)}, each "
            "once and in this order"
        )
    number = r"\s*(-?\d+(?:\.\d+)?)\s*"
    texts = [re.escape(text.strip()) for text, _, _, _ in parts]
    ends = [""] if parts[-1][1] is None else [number]
    return re.compile(number.join(texts) + ends[0])
