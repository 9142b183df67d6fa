"""Pictures -> views: tiles of a grid, and an overview of the whole picture (MM1, high resolution).

    Image                                        one picture
    Image Image Image Image Image                2 x 2 tiles in row-major order, then the overview
    Text Image Text Image ...                    with marks, such as "(0, 1, 1)" before each view

Each view is an `Image` that the vision encoder reads by itself and that takes `num_image_tokens`
positions. From here on, packing, the image buffer and the accounting count views.
"""

import abc
import enum
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mm1_jax.batch import Document, Image, Segment, Text, View
from mm1_jax.config import REQUIRED, Configurable, Required, config_class, derived
from mm1_jax.data import grids
from mm1_jax.data.chat_formats.base import Conversation, Turn
from mm1_jax.data.grid_rules import GridRule
from mm1_jax.data.grids import Grid
from mm1_jax.data.images import picture_size
from mm1_jax.field_types import PositiveInt


class Overview(enum.Enum):
    """The place of the view of the whole picture."""

    LAST = "last"  # After the tiles; better than first in MM1.5.
    FIRST = "first"
    NONE = "none"


class Marks(Configurable, abc.ABC):
    """Writes unscored text beside the views of a picture that states their places."""

    @abc.abstractmethod
    def marked(self, views: Sequence[Image], picture: int) -> list[Segment]:
        """Returns the views of a picture with their marks.

        Args:
            picture: Number of the picture in its document, from 0.
        """


class IndexMarks(Marks):
    """Writes the place of each view before it: MM1.5's (k, i, j) of picture, row and column.

    Pictures are counted from 0, rows and columns from 1. The overview of picture k is (k, 0, 0).
    """

    @config_class
    class Config(Marks.Config):
        # `{picture}`, `{row}` and `{column}` are replaced by numbers.
        tile: str = "({picture}, {row}, {column})"
        overview: str = "({picture}, 0, 0)"

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        for name in ("tile", "overview"):
            try:
                getattr(cfg, name).format(picture=0, row=1, column=1)
            except (LookupError, ValueError) as error:
                raise ValueError(
                    f"tiling.marks.{name}={getattr(cfg, name)!r}: {error!r}; expected a text with "
                    "{picture}, {row} and {column}"
                ) from None

    def marked(self, views: Sequence[Image], picture: int) -> list[Segment]:
        segments: list[Segment] = []
        for image in views:
            text, row, column = self._config.overview, 0, 0
            if image.view is not None:
                text, row, column = self._config.tile, image.view.row + 1, image.view.column + 1
            segments += _text(text.format(picture=picture, row=row, column=column))
            segments.append(image)
        return segments


class SeparatorMarks(Marks):
    """Writes separators between views: MM1.5's ":" at the overview, "," in a row, "<n>" after it.

    An overview at the end has its separator before it, and one at the beginning after it.
    """

    @config_class
    class Config(Marks.Config):
        overview: str = ":"
        column: str = ","
        row: str = "<n>"

    def marked(self, views: Sequence[Image], picture: int) -> list[Segment]:
        segments: list[Segment] = []
        for before, image in zip([None, *views], views, strict=False):
            if before is not None:
                segments += _text(self._between(before.view, image.view))
            segments.append(image)
        return segments

    def _between(self, before: View | None, after: View | None) -> str:
        if before is None or after is None:
            return self._config.overview
        return self._config.column if before.row == after.row else self._config.row


class Tiling(Configurable):
    """Replaces pictures by views of them.

    A picture whose header cannot be read is one view without marks. So is a picture whose grid has
    one tile, unless `overview_of_one_tile`.
    """

    @config_class
    class Config(Configurable.Config):
        rule: Required[GridRule.Config] = REQUIRED
        overview: Overview = Overview.LAST
        # Whether a picture with one tile has an overview, too, as in LLaVA-NeXT.
        overview_of_one_tile: bool = False
        marks: Marks.Config | None = None
        # Documents with more pictures to tile show one view of each. None sets no limit; MM1.5
        # has 2. A conversation that exceeds the limit shows its earlier pictures otherwise than its
        # beginning does, so the prompt of an earlier answer is no prefix of its tokens.
        max_tiled_images: PositiveInt | None = None
        # Side of a tile in pixels; `input.image_size`.
        tile_size: PositiveInt | None = derived(None)

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        if cfg.tile_size is None:
            raise ValueError(
                "tiling.tile_size is None; the input sets it to its image_size. Outside of an "
                "input, set it to the side of the images that the vision encoder reads."
            )
        self.tile_size: int = cfg.tile_size
        self.rule: GridRule = cfg.rule.instantiate()
        self.marks: Marks | None = None if cfg.marks is None else cfg.marks.instantiate()

    def grid(self, width: int, height: int) -> Grid:
        """Returns the grid of a picture of this size."""
        return self.rule.grid(width, height, self.tile_size)

    @property
    def most_views(self) -> int:
        """The largest number of views of a picture."""
        return self.rule.most_tiles + (self._config.overview is not Overview.NONE)

    def views(self, width: int, height: int) -> list[View | None]:
        """Returns the views of a picture in reading order; None is the overview."""
        columns, rows = grid = self.grid(width, height)
        views: list[View | None] = [
            View(columns, rows, column, row, self.rule.pads)
            for row in range(rows)
            for column in range(columns)
        ]
        cfg = self._config
        if cfg.overview is Overview.NONE or not (grid.num_tiles > 1 or cfg.overview_of_one_tile):
            return views
        return [*views, None] if cfg.overview is Overview.LAST else [None, *views]

    def document(self, document: Document) -> Document:
        """Returns the document with views and marks in place of its tiled pictures."""
        limit, number = self._config.max_tiled_images, 0
        if limit is not None and sum(image.is_tiled for image in document.images) > limit:
            return document
        segments: list[Segment] = []
        for segment in document.segments:
            if isinstance(segment, Image):
                segments += self.picture(segment, number)
                number += 1
            else:
                segments.append(segment)
        return replace(document, segments=tuple(segments))

    def picture(self, image: Image, number: int = 0) -> list[Segment]:
        """Returns the views and marks of a picture, which is the `number`-th of its document."""
        # An image with a view has been tiled before.
        if not image.is_tiled or image.view is not None or image.continues:
            return [image]
        size = picture_size(image)
        if size is None:
            return [image]
        views = [
            replace(image, view=view, is_tiled=False, continues=i > 0)
            for i, view in enumerate(self.views(*size))
        ]
        if self.marks is None or len(views) == 1:
            return list(views)
        return self.marks.marked(views, number)

    def exported(self) -> dict[str, Any]:
        """Returns plain values for the processor of an exported model (`interop/hf_model`).

        Raises:
            ValueError: The processor has no such rule or marks.
        """
        cfg, function = self._config, type(self.rule).function.__name__
        if grids.RULES.get(function) is not type(self.rule).function:
            raise ValueError(
                f"input.tiling.rule={type(self.rule).__name__} cannot be exported, because its "
                "function is not one of mm1_jax/data/grids.py"
            )
        marks = None
        if self.marks is not None:
            kinds = {IndexMarks: "index", SeparatorMarks: "separators"}
            if type(self.marks) not in kinds:
                raise ValueError(
                    f"input.tiling.marks={type(self.marks).__name__} cannot be exported; use "
                    "IndexMarks or SeparatorMarks"
                )
            texts = {name: value for name, value in cfg.marks.items() if name != "klass"}
            marks = {"kind": kinds[type(self.marks)], **texts}
        return {
            "rule": function,
            "options": self.rule.options,
            "pads": self.rule.pads,
            "overview": cfg.overview.value,
            "overview_of_one_tile": cfg.overview_of_one_tile,
            "marks": marks,
            "max_tiled_images": cfg.max_tiled_images,
        }

    def fingerprint(self) -> str:
        """Describes everything that determines the views of a picture."""
        return self._config.debug_string(kv_separator="=", field_separator=" ")


def last_pictures_tiled(documents: Sequence[Document], num_tiled: int) -> list[Document]:
    """Returns documents of which only the last `num_tiled` show their pictures in tiles.

    The others show one view of each picture, so that few-shot prompts stay short (MM1, mixed
    resolution). The documents are the exemplars of a prompt, in order.
    """
    first = len(documents) - num_tiled
    return [document if i >= first else untiled(document) for i, document in enumerate(documents)]


def untiled(document: Document) -> Document:
    """Returns the document with one view of each picture."""
    if isinstance(document, Conversation):
        return document.of([turn._replace(parts=_one_view_each(turn)) for turn in document.turns])
    segments = tuple(
        replace(segment, is_tiled=False) if isinstance(segment, Image) else segment
        for segment in document.segments
    )
    return replace(document, segments=segments)


def _one_view_each(turn: Turn) -> tuple[str | Image, ...]:
    return tuple(
        replace(part, is_tiled=False) if isinstance(part, Image) else part for part in turn.parts
    )


def _text(text: str) -> list[Segment]:
    return [Text(text, scored=False)] if text else []
