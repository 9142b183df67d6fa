"""Grids of tiles: functions that choose a grid from the size of a picture, and the sizes in it.

Grids are columns x rows. Every rule is deterministic down to ties, because the grid determines the
length of an example. The rules of MM1.5 are computed in integers: a square picture leaves all
square grids equal, and rounding would choose among them at random. The rules of other projects
round as their own code does.

Exported models carry a copy of this file, so it uses nothing but the standard library.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple


class Grid(NamedTuple):
    """A grid of tiles that a picture is cut into."""

    columns: int
    rows: int

    @property
    def num_tiles(self) -> int:
        return self.columns * self.rows


def fixed_grid(width: int, height: int, tile_size: int, *, columns: int, rows: int) -> Grid:
    """Returns the same grid for all pictures."""
    return Grid(columns, rows)


def least_padding(
    width: int, height: int, tile_size: int, *, min_tiles: int, max_tiles: int
) -> Grid:
    """Returns the grid with the least padding that holds a picture (MM1.5, Eq. 1)."""
    grids = _candidates(width, height, tile_size, min_tiles, max_tiles)
    return min(
        grids, key=lambda grid: (_padding(grid, width, height), grid.num_tiles, -grid.columns)
    )


def fewest_tiles(
    width: int, height: int, tile_size: int, *, min_tiles: int, max_tiles: int
) -> Grid:
    """Returns the grid with the fewest tiles that holds a picture, then the least padding."""
    grids = _candidates(width, height, tile_size, min_tiles, max_tiles)
    return min(
        grids, key=lambda grid: (grid.num_tiles, _padding(grid, width, height), -grid.columns)
    )


def closest_aspect(
    width: int, height: int, tile_size: int, *, min_tiles: int, max_tiles: int
) -> Grid:
    """Returns the grid whose aspect ratio is closest to the picture's (InternVL)."""
    grids = bounded_grids(min_tiles, max_tiles)
    best, least = grids[0], math.inf
    for grid in grids:
        # In floating point, as in InternVL: rounding separates ratios that are equally far.
        difference = abs(width / height - grid.columns / grid.rows)
        if difference < least:
            best, least = grid, difference
        elif difference == least and (
            width * height > 0.5 * tile_size * tile_size * grid.columns * grid.rows
        ):
            best = grid
    return best


def area_weighted_aspect(
    width: int, height: int, tile_size: int, *, min_tiles: int, max_tiles: int
) -> Grid:
    """Returns the grid that agrees best with the picture in aspect ratio and area (Megatron-LM)."""
    aspect = width / height

    def score(grid: Grid) -> float:
        ratio = grid.columns / grid.rows
        area = grid.columns * grid.rows * tile_size * tile_size / (width * height)
        return min(area, 0.6) * min(ratio / aspect, aspect / ratio)

    return max(bounded_grids(min_tiles, max_tiles), key=score)


def pinpoints(
    width: int,
    height: int,
    tile_size: int,
    *,
    grids: Sequence[Sequence[int]],
    rows_first: bool,
) -> Grid:
    """Returns the grid of a list that keeps most pixels, then wastes least (LLaVA-NeXT)."""

    def merit(grid: Grid) -> tuple[int, int]:
        full_width, full_height = grid.columns * tile_size, grid.rows * tile_size
        scale = min(full_width / width, full_height / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return effective, effective - full_width * full_height

    pairs = (tuple(pair)[::-1] if rows_first else tuple(pair) for pair in grids)
    return max((Grid(columns, rows) for columns, rows in pairs), key=merit)


def longest_side(width: int, height: int, tile_size: int, *, num_tiles: int) -> Grid:
    """Returns the grid whose longest side has a fixed number of tiles (Idefics3)."""
    longest, aspect = num_tiles * tile_size, width / height
    # Truncates and makes the shorter side even, twice, as transformers does.
    if width >= height:
        other = _even(longest / aspect)
        return Grid(num_tiles, math.ceil(int(longest / (longest / other)) / tile_size))
    other = _even(longest * aspect)
    return Grid(math.ceil(int(longest * (other / longest)) / tile_size), num_tiles)


# Rules by the names that exported models give.
RULES = {
    rule.__name__: rule
    for rule in (
        *(fixed_grid, least_padding, fewest_tiles, closest_aspect, area_weighted_aspect),
        *(pinpoints, longest_side),
    )
}


def padded_size(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """Returns the width and height of a picture that fills a canvas and keeps its aspect ratio.

    Rounds up, as LLaVA-NeXT does.
    """
    scale_x, scale_y = canvas[0] / size[0], canvas[1] / size[1]
    if scale_x < scale_y:
        return canvas[0], min(math.ceil(size[1] * scale_x), canvas[1])
    return min(math.ceil(size[0] * scale_y), canvas[0]), canvas[1]


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
def bounded_grids(min_tiles: int, max_tiles: int) -> tuple[Grid, ...]:
    """Returns all grids with a number of tiles within bounds, by that number, then by columns."""
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


def _candidates(
    width: int, height: int, tile_size: int, min_tiles: int, max_tiles: int
) -> Sequence[Grid]:
    """Returns the grids that hold a picture; if none does, the one in which it shrinks least."""
    grids = bounded_grids(min_tiles, max_tiles)
    holding = [grid for grid in grids if _holds(grid, width, height, tile_size)]
    return holding or [_least_shrinking(grids, width, height)]


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
