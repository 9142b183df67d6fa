"""Learned positions of a square grid of features, resized when another grid comes in.

Legend: J images, h w rows and columns of the grid, D model dim.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mm1_jax.config import REQUIRED, Required, config_class
from mm1_jax.layers.module import Module, param


class PositionEmbedding(Module):
    """Adds a learned vector to each cell of a grid; cells are numbered row by row."""

    @config_class
    class Config(Module.Config):
        # Cells along each side of the grid that the positions are stored for; set by the parent.
        grid_size: Required[int] = REQUIRED
        model_dim: Required[int] = REQUIRED
        # Standard deviation of the initial positions. Where a model must learn to tell positions
        # apart within a few hundred steps, 0.4 works and 0.02 stays on a plateau.
        init_std: float = 0.02

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.grid_size = cfg.grid_size
        self.positions = param(
            rngs,
            (cfg.grid_size**2, cfg.model_dim),
            (None, "embed"),
            jax.nn.initializers.truncated_normal(cfg.init_std),
        )

    def __call__(self, x: Float[Array, "J h w D"]) -> Float[Array, "J h w D"]:
        _, height, width, model_dim = x.shape
        positions = self.positions[...].reshape(self.grid_size, self.grid_size, model_dim)
        return x + resize_grid(positions, height, width).astype(x.dtype)[None]


def resize_grid(grid: Float[Array, "_ _ D"], height: int, width: int) -> Float[Array, "_ _ D"]:
    """A grid of vectors at another size: bicubic (Keys, a = -0.5), antialiased, in float32.

    That is `bicubic` with `antialias=True` in torch and `BICUBIC` in Pillow. A grid of the right
    size is returned as it is.
    """
    if grid.shape[:2] == (height, width):
        return grid
    shape = (height, width, grid.shape[-1])
    return jax.image.resize(grid.astype(jnp.float32), shape, method="cubic", antialias=True)
