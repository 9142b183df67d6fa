"""Logits -> cross entropy of every position, and its sums by corpus.

B batch rows   T target positions   V vocabulary   C corpora
"""

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
