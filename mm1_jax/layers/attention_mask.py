"""Attention mask rule: which positions may attend to which. No other file knows the rule.

A position attends to its own document (equal segment id) and never to padding (segment id 0). Under
causal attention it attends only to positions that are not later than its own or that lie in the
prefix of its row. The rule depends only on positions and segment ids, so packed training and cached
decoding share it: a cache row is one segment, and its slots are positions. Rows without segment ids
are one document each, without padding.

Legend: B batch, T query positions, S key positions.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

# Logit of a masked key. It is finite, so that a position that sees nothing (padding) gets an
# average instead of NaN, and so far below any logit that exp() of the difference is exactly zero.
MASKED = -1e30


def attention_mask(
    query_positions_BT: Int[Array, "B T"],
    query_segment_ids_BT: Int[Array, "B T"] | None,
    key_positions_BS: Int[Array, "B S"],
    key_segment_ids_BS: Int[Array, "B S"] | None,
    causal: bool,
    prefix_lengths_B: Int[Array, "B"] | None = None,
) -> Bool[Array, "B T S"]:
    """Returns a mask that is True where the query at T may attend to the key at S.

    Two documents and a padded position, causal:

        segment_ids  1 1 2 2 0
        positions    0 1 0 1 0

        1 . . . .
        1 1 . . .
        . . 1 . .
        . . 1 1 .
        . . . . .

    One document of 4 positions, causal, with a prefix of 2:

        1 1 . .
        1 1 . .
        1 1 1 .
        1 1 1 1
    """
    shape = (*query_positions_BT.shape, key_positions_BS.shape[1])
    mask_BTS = jnp.ones(shape, bool)
    if query_segment_ids_BT is not None and key_segment_ids_BS is not None:
        query_segments = query_segment_ids_BT[:, :, None]
        key_segments = key_segment_ids_BS[:, None, :]
        mask_BTS = (query_segments == key_segments) & (key_segments > 0)
    if causal:
        allowed_BTS = key_positions_BS[:, None, :] <= query_positions_BT[:, :, None]
        if prefix_lengths_B is not None:
            allowed_BTS |= (key_positions_BS < prefix_lengths_B[:, None])[:, None, :]
        mask_BTS &= allowed_BTS
    return mask_BTS


class Visibility(NamedTuple):
    """Arguments of `attention_mask`, for fused kernels that never build the T x S mask."""

    query_positions: Int[Array, "B T"]
    query_segment_ids: Int[Array, "B T"] | None
    key_positions: Int[Array, "B S"]
    key_segment_ids: Int[Array, "B S"] | None
    causal: bool
    prefix_lengths: Int[Array, "B"] | None = None

    def mask(self) -> Bool[Array, "B T S"]:
        return attention_mask(*self)
