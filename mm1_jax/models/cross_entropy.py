"""Logits -> cross entropy of every position, and its sums by corpus.

B batch rows   T target positions   V vocabulary   C corpora
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mm1_jax.batch import Batch


def token_losses(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"]
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Cross entropy of every position, and the logarithm of its softmax normaliser, in float32."""
    logits_BTV = logits.astype(jnp.float32)
    log_normalizer_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    target_logit_BT = jnp.take_along_axis(logits_BTV, targets[..., None], axis=-1)[..., 0]
    return log_normalizer_BT - target_logit_BT, log_normalizer_BT


def chunked_token_losses(
    to_logits: Callable[[Float[Array, "B t D"]], Float[Array, "B t V"]],
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    chunk_length: int | None,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """`token_losses` of `to_logits(hidden)` with the logits of `chunk_length` positions at a time.

    At 32,000 entries the float32 logits of a row of 4096 take 0.5 GB, and as much again for their
    gradient; the logits of a chunk are made anew in the backward pass instead, which costs one more
    product with the output layer. None makes all logits at once.

    Raises:
        ValueError: The chunks do not divide the row.
    """
    length = targets.shape[1]
    if chunk_length is None or chunk_length >= length:
        return token_losses(to_logits(hidden), targets)
    if chunk_length < 1 or length % chunk_length:
        raise ValueError(
            f"loss.chunk_length={chunk_length}: must divide the {length} positions of a row"
        )

    @jax.checkpoint
    def chunk_losses(start: Array) -> tuple[Array, Array]:
        part = jax.lax.dynamic_slice_in_dim(hidden, start, chunk_length, axis=1)
        part_targets = jax.lax.dynamic_slice_in_dim(targets, start, chunk_length, axis=1)
        return token_losses(to_logits(part), part_targets)

    starts = jnp.arange(0, length, chunk_length)
    chunks = jax.lax.map(chunk_losses, starts)
    cross_entropy_BT, log_normalizer_BT = (
        jnp.moveaxis(x, 0, 1).reshape(targets.shape) for x in chunks
    )
    return cross_entropy_BT, log_normalizer_BT


def corpus_sums(
    cross_entropy: Float[Array, "B T"], batch: Batch, num_corpora: int
) -> tuple[Float[Array, "C"], Float[Array, "C"]]:
    """Cross entropy of the scored targets of every corpus, and their number."""
    corpus_C = jnp.arange(num_corpora)
    scored_CBT = batch.loss_mask[None] & (batch.corpus_ids[None] == corpus_C[:, None, None])
    return (
        jnp.sum(jnp.where(scored_CBT, cross_entropy[None], 0.0), axis=(1, 2)),
        jnp.sum(scored_CBT, axis=(1, 2), dtype=jnp.float32),
    )
