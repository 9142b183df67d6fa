"""Choice of the next token from logits, greedy or by sampling.

Legend: B batch, V vocabulary.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


@dataclass(frozen=True)
class Sampling:
    """Samples tokens from softmax(logits / temperature), truncated to the most likely tokens.

    Truncation applies top-k first and then top-p, as in Hugging Face transformers.

    Attributes:
        temperature: 0 is greedy decoding, which always chooses the most likely token.
        top_k: Number of most likely tokens to sample from. None disables it.
        top_p: Probability mass to sample from: the smallest set of most likely tokens with at least
            this total probability (nucleus sampling, arXiv 1904.09751). 1 disables it.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: must be 0 (greedy) or above")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}: must be at least 1, or None for all tokens")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be above 0 and at most 1")
        if self.is_greedy and (self.top_k is not None or self.top_p < 1):
            raise ValueError(
                f"top_k={self.top_k}, top_p={self.top_p} have no effect with temperature=0, which "
                "is greedy; set a temperature, such as 1 for the model's own probabilities"
            )

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


GREEDY = Sampling()


def row_keys(seed: int | Int[Array, ""], row_ids: Int[Array, "B"]) -> Key[Array, "B"]:
    """Returns a PRNG key per row, which depends only on the seed and the row's id."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), row_ids)


def choose(
    logits: Float[Array, "B V"],
    forbidden: tuple[int, ...],
    sampling: Sampling,
    keys: Key[Array, "B"],
    steps: Int[Array, "B"],
) -> Int[Array, "B"]:
    """Chooses a token per row that is not `forbidden`.

    Args:
        keys: PRNG key per row, from `row_keys`; ignored by greedy decoding.
        steps: Number of tokens that each row's answer already has.
    """
    scores_BV = mask_forbidden(logits, forbidden)
    if sampling.is_greedy:
        return jnp.argmax(scores_BV, axis=-1).astype(jnp.int32)
    keys = jax.vmap(jax.random.fold_in)(keys, steps)
    scores_BV = truncated(scores_BV, sampling)
    return jax.vmap(jax.random.categorical)(keys, scores_BV).astype(jnp.int32)


def mask_forbidden(logits: Float[Array, "B V"], forbidden: tuple[int, ...]) -> Float[Array, "B V"]:
    """Returns the logits in float32, with minus infinity for `forbidden` tokens."""
    allowed_V = jnp.ones(logits.shape[-1], bool).at[jnp.array(forbidden, jnp.int32)].set(False)
    return jnp.where(allowed_V[None], logits.astype(jnp.float32), -jnp.inf)


def truncated(logits: Float[Array, "B V"], sampling: Sampling) -> Float[Array, "B V"]:
    """Returns logits / temperature, with minus infinity for tokens outside of top-k and top-p.

    Tokens as likely as the k-th one are kept. So is the token that brings the total probability up
    to `top_p`.
    """
    logits = logits / sampling.temperature
    if sampling.top_k is not None:
        best_BX, _ = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))
        logits = jnp.where(logits >= best_BX[:, -1:], logits, -jnp.inf)
    if sampling.top_p < 1:
        descending_BV = -jnp.sort(-logits, axis=-1)
        weights_BV = jax.nn.softmax(descending_BV, axis=-1)
        before_BV = jnp.cumsum(weights_BV, axis=-1) - weights_BV
        number_B1 = jnp.sum(before_BV < sampling.top_p, axis=-1, keepdims=True)
        least_B1 = jnp.take_along_axis(descending_BV, number_B1 - 1, axis=-1)
        logits = jnp.where(logits >= least_B1, logits, -jnp.inf)
    return logits
