"""Position embeddings: of 2D grids, learned and resized to the input grid or fixed, and of rows.

Legend: J images, h w rows and columns of the grid, B batch, T positions, D model dim.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mm1_jax.config import Required, config_class, derived
from mm1_jax.field_types import NonNegative, Positive, PositiveInt
from mm1_jax.layers.module import Module, param


class PositionEmbedding(Module):
    """Adds a learned vector to each cell of a grid; cells are numbered in row-major order."""

    @config_class
    class Config(Module.Config):
        # Side length, in cells, of the grid of stored positions; set by the parent.
        grid_size: Required[PositiveInt] = derived()
        model_dim: Required[PositiveInt] = derived()
        # Standard deviation of the initial positions. If a model must learn to tell positions apart
        # within a few hundred steps, 0.4 works, while 0.02 stays on a plateau.
        init_std: NonNegative = 0.02

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


class SequencePositions(Module):
    """Adds a learned vector to each position of a row of at most `length` tokens."""

    @config_class
    class Config(Module.Config):
        length: Required[PositiveInt] = derived()
        model_dim: Required[PositiveInt] = derived()
        init_std: NonNegative = 0.01

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        init = jax.nn.initializers.normal(cfg.init_std)
        self.positions = param(rngs, (cfg.length, cfg.model_dim), (None, "embed"), init)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return x + self.positions[...][None, : x.shape[1]].astype(x.dtype)


class SinCosPositions(Module):
    """Adds fixed sine and cosine positions of the column, then of the row, to each cell.

    These are the positions of MAE and AIM. Nothing is learned, and any grid size is supported.
    """

    @config_class
    class Config(Module.Config):
        theta: Positive = 10_000.0  # the slowest pair has a period of about 2 pi theta cells

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.theta = cfg.theta

    def __call__(self, x: Float[Array, "J h w D"]) -> Float[Array, "J h w D"]:
        _, height, width, model_dim = x.shape
        return x + sin_cos_grid(height, width, model_dim, self.theta).astype(x.dtype)[None]


def sin_cos_grid(height: int, width: int, dim: int, theta: float) -> Float[Array, "h w D"]:
    """Returns per cell sin and cos of its column at D/4 frequencies, then of its row; float32."""
    if dim % 4:
        raise ValueError(f"positions: model_dim={dim} must be divisible by 4 for sines and cosines")
    frequencies = theta ** -(jnp.arange(dim // 4, dtype=jnp.float32) / (dim // 4))

    def along(length: int) -> Float[Array, "cells half"]:
        angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies[None]
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)

    shape = (height, width, dim // 2)
    columns = jnp.broadcast_to(along(width)[None], shape)
    rows = jnp.broadcast_to(along(height)[:, None], shape)
    return jnp.concatenate([columns, rows], axis=2)


def resize_grid(grid: Float[Array, "_ _ D"], height: int, width: int) -> Float[Array, "_ _ D"]:
    """Resizes a grid of vectors with antialiased bicubic filtering (Keys, a = -0.5) in float32.

    This equals `bicubic` with `antialias=True` in torch, which open_clip uses to load positions at
    another size, and `BICUBIC` in Pillow. `interpolate_pos_encoding` in transformers differs: it
    uses a = -0.75 without antialiasing. A grid that already has the size is returned unchanged.
    """
    if grid.shape[:2] == (height, width):
        return grid
    shape = (height, width, grid.shape[-1])
    return jax.image.resize(grid.astype(jnp.float32), shape, method="cubic", antialias=True)
