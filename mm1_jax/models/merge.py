"""Puts image embeddings where the image tokens are: a gather and a select, shapes fixed.

Legend: B batch, T positions, D model dim, I image slots/row, J images in the buffer,
M image tokens/image.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def merge(
    token_embeddings: Float[Array, "B T D"],
    image_embeddings: Float[Array, "J M D"],
    is_image: Bool[Array, "B T"],
    image_index: Int[Array, "B I"],
) -> Float[Array, "B T D"]:
    """The embeddings of a row: of its images at the image positions, of its tokens elsewhere.

    The j-th image position of a row takes embedding `m` of the image in slot `k`, with
    `k, m = divmod(j, M)`; which image that is, `image_index[b, k]` says. A slot of -1, or one
    beyond the last, gives zeros. With M = 2 and `image_index = [[4, -1]]`:

        is_image   0      1     1     0      1   1
        result     token  4:0   4:1   token  0   0
    """
    num_image_tokens = image_embeddings.shape[1]
    rank_BT = jnp.cumsum(is_image, axis=1) - 1
    k_BT, m_BT = jnp.divmod(rank_BT, num_image_tokens)
    slot_BT = jnp.take_along_axis(image_index, k_BT, axis=1, mode="fill", fill_value=-1)
    gathered_BTD = image_embeddings[jnp.maximum(slot_BT, 0), m_BT]
    gathered_BTD = jnp.where((slot_BT >= 0)[:, :, None], gathered_BTD, 0)
    return jnp.where(is_image[:, :, None], gathered_BTD, token_embeddings)
