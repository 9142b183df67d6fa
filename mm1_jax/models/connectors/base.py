"""Base class of connectors, and the adaptive pooling that several of them use.

Legend: J images, P patches/image, h w rows and columns of patches, M image tokens/image,
r c rows and columns of tokens, Dv vision dim, D model dim.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mm1_jax.config import REQUIRED, Required, config_class, derived
from mm1_jax.field_types import PositiveInt
from mm1_jax.layers.module import Module


class Connector(Module):
    """Maps the features of an image to `num_image_tokens` embeddings in decoder space.

    `num_image_tokens` is the single source of the number of positions that an image occupies: the
    data pipeline, the merge and the report all read it.
    """

    @config_class
    class Config(Module.Config):
        num_image_tokens: Required[PositiveInt] = REQUIRED
        # Dims of the vision encoder and of the decoder, set by the parent.
        input_dim: Required[PositiveInt] = derived()
        output_dim: Required[PositiveInt] = derived()

    def __call__(self, image_features: Float[Array, "J P Dv"]) -> Float[Array, "J M D"]:
        raise NotImplementedError(type(self))


def square_side(count: int, field: str) -> int:
    """Returns the side length of a square grid of `count` cells.

    Raises:
        ValueError: `count` is not a square number. The message names `field` and the nearest ones.
    """
    side = math.isqrt(max(count, 0))
    if count < 1 or side**2 != count:
        nearest = f"{side**2} or {(side + 1) ** 2}" if count > 1 else "1"
        raise ValueError(
            f"{field}={count}: must be a square number, because the cells form a square grid; "
            f"the nearest are {nearest}"
        )
    return side


def to_grid(image_features: Float[Array, "J P Dv"]) -> Float[Array, "J h w Dv"]:
    """Reshapes patches in row-major order to the square grid that they come from."""
    num_images, num_patches, input_dim = image_features.shape
    side = square_side(num_patches, "patches per image")
    return image_features.reshape(num_images, side, side, input_dim)


def adaptive_pool(x_JhwD: Float[Array, "J h w D"], side: int) -> Float[Array, "J r c D"]:
    """Averages a grid of any size over `side` x `side` bins that cover it.

    Pooling is separable: one matrix for the rows and one for the columns. Their entries, 0 and 1,
    are exact in any dtype, so only accumulation rounds the sums. The bin sizes divide afterward.
    """
    rows_rh = adaptive_bins(x_JhwD.shape[1], side)
    columns_cw = adaptive_bins(x_JhwD.shape[2], side)
    sizes_rc = rows_rh.sum(1)[:, None] * columns_cw.sum(1)[None]
    sums_JrcD = jnp.einsum(
        "rh,cw,JhwD->JrcD",
        jnp.asarray(rows_rh, x_JhwD.dtype),
        jnp.asarray(columns_cw, x_JhwD.dtype),
        x_JhwD,
    )
    return sums_JrcD / jnp.asarray(sizes_rc, x_JhwD.dtype)[None, :, :, None]


def adaptive_bins(size: int, num_bins: int) -> np.ndarray:
    """Returns a 0/1 matrix `[num_bins, size]` of the cells that each bin averages over.

    Bin i spans cells floor(i size / num_bins) to ceil((i + 1) size / num_bins), end excluded. If
    `num_bins` does not divide `size`, neighboring bins share a cell. There may be more bins than
    cells. Three bins over four cells:

        1 1 0 0
        0 1 1 0
        0 0 1 1
    """
    bins = np.zeros((num_bins, size), np.float32)
    for i in range(num_bins):
        bins[i, i * size // num_bins : -(-(i + 1) * size // num_bins)] = 1
    return bins
