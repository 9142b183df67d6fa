"""Rules that choose the grid of tiles of a picture, as configs."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from mm1_jax.config import Configurable, config_class
from mm1_jax.data import grids
from mm1_jax.data.grids import Grid
from mm1_jax.data.images import Fit
from mm1_jax.field_types import PositiveInt


class GridRule(Configurable, abc.ABC):
    """Chooses the grid of a picture by `function`, with the fields of the config as options."""

    # (width, height, side of a tile in pixels, options) -> grid; one of `grids` in models that are
    # exported.
    function: ClassVar[Callable[..., Grid]]

    @config_class
    class Config(Configurable.Config):
        # How the picture fills the grid.
        fit: Fit = Fit.STRETCH

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        if cfg.fit is Fit.CROP:
            raise ValueError("rule.fit=CROP: tiles show whole pictures; set it to STRETCH or PAD")
        self.pads: bool = cfg.fit is Fit.PAD
        self.options: dict[str, Any] = {
            name: value for name, value in cfg.items() if name not in ("klass", "fit")
        }

    @property
    @abc.abstractmethod
    def most_tiles(self) -> int:
        """The largest number of tiles of a picture."""

    def grid(self, width: int, height: int, tile_size: int) -> Grid:
        """Returns the grid of a picture of `width` x `height` pixels."""
        return type(self).function(width, height, tile_size, **self.options)


class FixedGrid(GridRule):
    """One grid for all pictures; 2 x 2 tiles of 672 pixels are MM1's 1344 x 1344."""

    function = staticmethod(grids.fixed_grid)

    @config_class
    class Config(GridRule.Config):
        columns: PositiveInt = 2
        rows: PositiveInt = 2

    @property
    def most_tiles(self) -> int:
        return self.options["columns"] * self.options["rows"]


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

    @property
    def most_tiles(self) -> int:
        return self.options["max_tiles"]


class LeastPadding(_Bounded):
    """MM1.5, Eq. (1), taken literally.

    A grid holds a picture if the picture need not shrink to fit into it. Among the grids that hold
    it, the one with the least padding is chosen, after the picture is enlarged to fill the grid. If
    none holds it, the grid in which it shrinks least is chosen. The paper has no tie-break; here it
    is the fewest tiles, then the most columns. On usual sizes the literal reading takes more tiles
    than the paper reports (640 x 480 becomes 3 x 2); see `FewestTiles`.
    """

    function = staticmethod(grids.least_padding)

    @config_class
    class Config(_Bounded.Config):
        fit: Fit = Fit.PAD
        min_tiles: PositiveInt = 4
        max_tiles: PositiveInt = 9


class FewestTiles(_Bounded):
    """MM1.5's rule in a reading that agrees with the number of views that the paper reports.

    Among the grids that hold a picture, the one with the fewest tiles is chosen, then the one with
    the least padding. The rest is as in `LeastPadding`.
    """

    function = staticmethod(grids.fewest_tiles)

    @config_class
    class Config(_Bounded.Config):
        fit: Fit = Fit.PAD
        min_tiles: PositiveInt = 4
        max_tiles: PositiveInt = 9


class ClosestAspect(_Bounded):
    """InternVL's rule: the grid whose aspect ratio is closest to the picture's.

    Among equals, a grid with more tiles replaces one with fewer if the picture has more than half
    of its pixels. NVLM uses the rule with at most 6 tiles.
    """

    function = staticmethod(grids.closest_aspect)


class AreaWeightedAspect(_Bounded):
    """Megatron-LM's rule `use_area_weighted_aspect_ratio`: agreement of aspect ratio and area."""

    function = staticmethod(grids.area_weighted_aspect)


class Pinpoints(GridRule):
    """LLaVA-NeXT's anyres: the grid of a list that keeps most pixels, then wastes least."""

    function = staticmethod(grids.pinpoints)

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
        if not cfg.grids or any(len(pair) != 2 or min(pair) < 1 for pair in cfg.grids):
            raise ValueError(
                f"tiling.rule.grids={cfg.grids}; expected pairs of columns and rows, each at "
                "least 1."
            )

    @property
    def most_tiles(self) -> int:
        return max(columns * rows for columns, rows in self.options["grids"])


class LongestSide(GridRule):
    """The rule of Idefics3 and SmolVLM: the longest side takes a fixed number of tiles."""

    function = staticmethod(grids.longest_side)

    @config_class
    class Config(GridRule.Config):
        num_tiles: PositiveInt = 4

    @property
    def most_tiles(self) -> int:
        return self.options["num_tiles"] ** 2
