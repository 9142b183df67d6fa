"""Weights of scored targets: how much conversations of different lengths count in the loss.

    weighting      weight of a target    sum over a conversation
    token          1                     n
    sample         1 / n                 1
    square_root    1 / sqrt(n)           sqrt(n)

n is the number of scored targets of the packed document. It is computed on the device, from
`segment_ids` and `loss_mask` of the row that holds the document, so packing, micro-batches and
hosts do not change it. The parts of a split document count as documents of their own.

Legend: B batch rows, T target positions.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Weighting = Literal["token", "sample", "square_root"]


def target_weights(
    loss_mask: Bool[Array, "B T"], segment_ids: Int[Array, "B T"], weighting: Weighting
) -> Float[Array, "B T"]:
    """Returns the weight of each target in the loss, 0 for unscored ones."""
    if weighting == "token":
        return loss_mask.astype(jnp.float32)
    # Positions of a document without scored targets have weight 0, and must not divide by 0.
    n_BT = jnp.maximum(scored_in_document(loss_mask, segment_ids), 1).astype(jnp.float32)
    power = {"sample": -1.0, "square_root": -0.5}[weighting]
    return jnp.where(loss_mask, n_BT**power, 0.0)


def scored_in_document(
    loss_mask: Bool[Array, "B T"], segment_ids: Int[Array, "B T"]
) -> Int[Array, "B T"]:
    """Returns the number of scored targets in the document of each position.

    Example of a row, with one-digit numbers:

        segment_ids    1 1 1 1 2 2 2 0
        loss_mask      . x . x . . x .
        result         2 2 2 2 1 1 1 0
    """
    # Counts before the start and through the end of a document, spread over it by scans. Counts
    # never decrease along a row, so the nearest start has the largest and the nearest end the
    # smallest. Scans partition over rows and over parts of rows; sums per segment would scatter.
    scored_BT = loss_mask.astype(jnp.int32)
    through_BT = jnp.cumsum(scored_BT, axis=1)
    is_cut = segment_ids[:, 1:] != segment_ids[:, :-1]
    is_first = jnp.pad(is_cut, ((0, 0), (1, 0)), constant_values=True)
    is_last = jnp.pad(is_cut, ((0, 0), (0, 1)), constant_values=True)
    before_BT = jax.lax.cummax(jnp.where(is_first, through_BT - scored_BT, 0), axis=1)
    most = loss_mask.shape[1]
    end_BT = jax.lax.cummin(jnp.where(is_last, through_BT, most), axis=1, reverse=True)
    return end_BT - before_BT
