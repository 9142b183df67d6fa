"""Merge of image embeddings into the positions of image tokens: gathers and a select, fixed shapes.

Legend: B batch, T positions, D model dim, I image slots/row, J images in the buffer,
M image tokens/image, R places for image tokens in a row (R = I M).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def merge(
    token_embeddings: Float[Array, "B T D"],
    image_embeddings: Float[Array, "J M D"],
    is_image: Bool[Array, "B T"],
    image_index: Int[Array, "B I"],
) -> Float[Array, "B T D"]:
    """Replaces the embeddings at image positions by those of the row's images.

    The j-th image position of row b takes embedding `m` of image `image_index[b, k]`, where
    `k, m = divmod(j, M)`. An index of -1, or a slot beyond the last, gives zeros. With M = 2 and
    `image_index = [[4, -1]]`:

        is_image   0      1     1     0      1   1
        result     token  4:0   4:1   token  0   0
    """
    (num_rows, num_slots), (_, M, D) = image_index.shape, image_embeddings.shape
    shown_BIMD = image_embeddings[jnp.maximum(image_index, 0)]
    shown_BIMD = jnp.where((image_index >= 0)[:, :, None, None], shown_BIMD, 0)
    spread_BTD = spread(shown_BIMD.reshape(num_rows, num_slots * M, D), is_image)
    return jnp.where(is_image[:, :, None], spread_BTD, token_embeddings)


@jax.custom_vjp
def spread(x_BRD: Float[Array, "B R D"], is_image_BT: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
    """Places the r-th row of x at the r-th image position; zeros at positions beyond the last row.

    The gradient is also a gather. The one that JAX derives would be a scatter-add of T rows into R,
    which accelerators run one row at a time.
    """
    rank_BT = jnp.cumsum(is_image_BT, axis=1) - 1
    return jnp.take_along_axis(x_BRD, rank_BT[:, :, None], axis=1, mode="fill", fill_value=0)


def _spread_forward(x_BRD: Array, is_image_BT: Array) -> tuple[Array, tuple[Array, Array]]:
    # The backward pass needs only the number of rows of x.
    return spread(x_BRD, is_image_BT), (is_image_BT, jnp.zeros(x_BRD.shape[1], bool))


def _spread_backward(residuals: tuple[Array, Array], y_grad_BTD: Array) -> tuple[Array, None]:
    is_image_BT, places_R = residuals
    y_grad_BTD = jnp.where(is_image_BT[:, :, None], y_grad_BTD, 0)
    count_BT = jnp.cumsum(is_image_BT, axis=1)
    # The r-th image position is the number of positions that have seen at most r image positions.
    place_BR = jnp.sum(
        count_BT[:, None] <= jnp.arange(len(places_R))[None, :, None], axis=2, dtype=jnp.int32
    )
    x_grad_BRD = jnp.take_along_axis(
        y_grad_BTD, place_BR[:, :, None], axis=1, mode="fill", fill_value=0
    )
    return x_grad_BRD, None


spread.defvjp(_spread_forward, _spread_backward)
