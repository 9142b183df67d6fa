"""Rules that choose the grid of tiles of a picture from its size, and token counts of peers.

Grids are columns x rows. Every rule is deterministic down to ties, because the grid determines the
length of an example. The rules of MM1.5 are computed in integers: a square picture leaves all
square grids equal, and rounding would choose among them at random. The rules of other projects
round as their own code does.
"""

import abc
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

from mm1_jax.config import Configurable, config_class
from mm1_jax.data.images import Fit
from mm1_jax.field_types import PositiveInt


class Grid(NamedTuple):
    """A grid of tiles that a picture is cut into."""

    columns: int
    rows: int

    @property
    def num_tiles(self) -> int:
        return self.columns * self.rows


class GridRule(Configurable, abc.ABC):
    """Chooses the grid of a picture."""

    @config_class
    class Config(Configurable.Config):
        # How the picture fills the grid.
        fit: Fit = Fit.STRETCH

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        self.pads: bool = cfg.fit is Fit.PAD

    @abc.abstractmethod
    def grid(self, width: int, height: int, tile_size: int) -> Grid:
        """Returns the grid of a picture of `width` x `height` pixels.

        Args:
            tile_size: Side of a tile, in pixels.
        """


class FixedGrid(GridRule):
    """The same grid for all pictures; 2 x 2 tiles of 672 pixels are MM1's 1344 x 1344."""

    @config_class
    class Config(GridRule.Config):
        columns: PositiveInt = 2
        rows: PositiveInt = 2

    def grid(self, width: int, height: int, tile_size: int) -> Grid:
        return Grid(self._config.columns, self._config.rows)


class _Bounded(GridRule):
    """A rule that chooses among all grids with a number of tiles within bounds."""

    @config_class
    class Config(GridRule.Config):
        min_tiles: PositiveInt = 1
        max_tiles: PositiveInt = 12

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        if cfg.min_tiles > cfg.max_tiles:
            raise ValueError(
                f"tiling.rule.min_tiles={cfg.min_tiles} is more than max_tiles={cfg.max_tiles}."
            )
        self.grids = _grids(cfg.min_tiles, cfg.max_tiles)


class LeastPadding(_Bounded):
    """MM1.5, Eq. (1), taken literally.

    A grid holds a picture if the picture need not shrink to fit into it. Among the grids that hold
    it, the one with the least padding is chosen, after the picture is enlarged to fill the grid. If
    none holds it, the grid in which it shrinks least is chosen. The paper has no tie-break; here it
    is the fewest tiles, then the most columns. On usual sizes the literal reading takes more tiles
    than the paper reports (640 x 480 becomes 3 x 2); see `FewestTiles`.
    """

    @config_class
    class Config(_Bounded.Config):
        fit: Fit = Fit.PAD
        min_tiles: PositiveInt = 4
        max_tiles: PositiveInt = 9

    def grid(self, width: int, height: int, tile_size: int) -> Grid:
        holding = [grid for grid in self.grids if _holds(grid, width, height, tile_size)]
        if not holding:
            return _least_shrinking(self.grids, width, height)
        return min(
            holding,
            key=lambda grid: (_padding(grid, width, height), grid.num_tiles, -grid.columns),
        )


class FewestTiles(_Bounded):
    """MM1.5's rule in a reading that agrees with the number of views that the paper reports.

    Among the grids that hold a picture, the one with the fewest tiles is chosen, then the one with
    the least padding. The rest is as in `LeastPadding`.
    """

    @config_class
    class Config(_Bounded.Config):
        fit: Fit = Fit.PAD
        min_tiles: PositiveInt = 4
        max_tiles: PositiveInt = 9

    def grid(self, width: int, height: int, tile_size: int) -> Grid:
        holding = [grid for grid in self.grids if _holds(grid, width, height, tile_size)]
        if not holding:
            return _least_shrinking(self.grids, width, height)
        return min(
            holding,
            key=lambda grid: (grid.num_tiles, _padding(grid, width, height), -grid.columns),
        )


class ClosestAspect(_Bounded):
    """InternVL's rule: the grid whose aspect ratio is closest to the picture's.

    Among equals, a grid with more tiles replaces one with fewer if the picture has more than half
    of its pixels. NVLM uses the rule with at most 6 tiles.
    """

    def grid(self, width: int, height: int, tile_size: int) -> Grid:
        best, least = self.grids[0], math.inf
        for grid in self.grids:
            # In floating point, as in InternVL: rounding separates ratios that are equally far.
            difference = abs(width / height - grid.columns / grid.rows)
            if difference < least:
                best, least = grid, difference
            elif difference == least and (
                width * height > 0.5 * tile_size * tile_size * grid.columns * grid.rows
            ):
                best = grid
        return best


class AreaWeightedAspect(_Bounded):
    """Megatron-LM's rule `use_area_weighted_aspect_ratio`: agreement of aspect ratio and area."""

    def grid(self, width: int, height: int, tile_size: int) -> Grid:
        aspect = width / height

        def score(grid: Grid) -> float:
            ratio = grid.columns / grid.rows
            area = grid.columns * grid.rows * tile_size * tile_size / (width * height)
            return min(area, 0.6) * min(ratio / aspect, aspect / ratio)

        return max(self.grids, key=score)


class Pinpoints(GridRule):
    """LLaVA-NeXT's anyres: the grid of a list that keeps most pixels, then wastes least."""

    @config_class
    class Config(GridRule.Config):
        fit: Fit = Fit.PAD
        # Columns and rows in order of preference among equals.
        grids: Sequence[tuple[int, int]] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
        # transformers reads the pairs of LLaVA-NeXT's list as (height, width). Equal candidates
        # then resolve the other way.
        rows_first: bool = False

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        if not cfg.grids or any(min(grid) < 1 for grid in cfg.grids):
            raise ValueError(
                f"tiling.rule.grids={cfg.grids}; expected pairs of columns and rows, each at "
                "least 1."
            )
        self.grids = [Grid(*(grid[::-1] if cfg.rows_first else grid)) for grid in cfg.grids]

    def grid(self, width: int, height: int, tile_size: int) -> Grid:
        def merit(grid: Grid) -> tuple[int, int]:
            full_width, full_height = grid.columns * tile_size, grid.rows * tile_size
            scale = min(full_width / width, full_height / height)
            effective = min(int(width * scale) * int(height * scale), width * height)
            return effective, effective - full_width * full_height

        return max(self.grids, key=merit)


class LongestSide(GridRule):
    """The rule of Idefics3 and SmolVLM: the longest side takes a fixed number of tiles."""

    @config_class
    class Config(GridRule.Config):
        num_tiles: PositiveInt = 4

    def grid(self, width: int, height: int, tile_size: int) -> Grid:
        num_tiles = self._config.num_tiles
        longest, aspect = num_tiles * tile_size, width / height
        # Truncates and makes the shorter side even, twice, as transformers does.
        if width >= height:
            other = _even(longest / aspect)
            return Grid(num_tiles, math.ceil(int(longest / (longest / other)) / tile_size))
        other = _even(longest * aspect)
        return Grid(math.ceil(int(longest * (other / longest)) / tile_size), num_tiles)


def unpadded_tokens(
    width: int,
    height: int,
    grid: Grid,
    *,
    features_per_side: int,
    max_tiles: int | None = None,
    digits: int | None = None,
) -> int:
    """Returns the tokens of a picture in LLaVA-NeXT or LLaVA-OneVision.

    The count has the base view, the features of the tiles without those of the padding, and a
    newline vector at the end of each row. Models of this project do not cut views: each keeps its
    `num_image_tokens`. The function states what the published models read.

    Args:
        features_per_side: Side of the square of features of a tile, such as 24.
        max_tiles: Features of more tiles than this are shrunk, as `anyres_max_9` does.
        digits: Rounds the scaled side to this many decimal digits before truncation;
            transformers takes 7.
    """
    columns, rows = grid.columns * features_per_side, grid.rows * features_per_side

    def kept(full: int, inner: float) -> int:
        inner = inner if digits is None else round(inner, digits)
        return full - (full - int(inner)) // 2 * 2

    if width / height > columns / rows:
        rows = kept(rows, height * (columns / width))
    else:
        columns = kept(columns, width * (rows / height))
    if max_tiles is not None:
        times = math.sqrt(rows * columns / (max_tiles * features_per_side**2))
        if times > 1.1:
            rows, columns = int(rows // times), int(columns // times)
    return features_per_side**2 + rows * (columns + 1)


@functools.cache
def _grids(min_tiles: int, max_tiles: int) -> tuple[Grid, ...]:
    """Returns all grids by rising number of tiles, then of columns."""
    sides = range(1, max_tiles + 1)
    grids = [
        Grid(columns, rows)
        for columns in sides
        for rows in sides
        if min_tiles <= columns * rows <= max_tiles
    ]
    return tuple(sorted(grids, key=lambda grid: (grid.num_tiles, grid.columns)))


def _scale(grid: Grid, width: int, height: int) -> int:
    """Returns how much a picture grows to fill the grid, times width * height / tile size."""
    return min(grid.columns * height, grid.rows * width)


def _holds(grid: Grid, width: int, height: int, tile_size: int) -> bool:
    return tile_size * _scale(grid, width, height) >= width * height


def _padding(grid: Grid, width: int, height: int) -> int:
    """Returns the padded area, times width * height / tile size squared."""
    return grid.num_tiles * width * height - _scale(grid, width, height) ** 2


def _least_shrinking(grids: Sequence[Grid], width: int, height: int) -> Grid:
    return min(
        grids, key=lambda grid: (-_scale(grid, width, height), grid.num_tiles, -grid.columns)
    )


def _even(side: float) -> int:
    return max(int(side) + int(side) % 2, 1)
