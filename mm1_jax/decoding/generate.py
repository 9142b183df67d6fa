"""Decoding with a KV cache: generates new tokens for a batch of prompts with images.

Prompts are rows of a `Batch`, one document per row, padded on the right. A prefill pass fills the
cache. Each step then adds one token per row, overwriting the padding, until all rows have ended.

Experts are always dropless here, so the answer of a row does not depend on the other rows. Neither
do the random numbers used for it.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mm1_jax.batch import Batch
from mm1_jax.decoding.options import DecodingOptions
from mm1_jax.decoding.sampling import choose, row_keys
from mm1_jax.models.mm1 import MM1
from mm1_jax.parallel.sharding import Placement, constrain, current_placement


def generate(
    model: MM1,
    batch: Batch,
    options: DecodingOptions,
    *,
    row_ids: Int[Array, "B"] | None = None,
) -> Int[Array, "B _"]:
    """Generates `max_new_tokens` tokens per prompt: the answer including `eos`, then `pad`.

    Compiles once per batch shape and options. Inside `use_mesh` it runs on the mesh, using the
    parameters as they are sharded; every process passes the same global batch and gets all answers.
    A row without a prompt (all `segment_ids` 0) gets only `pad`.

    Args:
        options: Decoding options. Stop strings do not end answers here; `DecodingOptions.text`
            truncates the text.
        row_ids: Together with the seed, determine the random numbers of each row. Default to 0, 1,
            ...
    """
    if row_ids is None:
        row_ids = jnp.arange(len(batch.tokens))
    return _generate(
        model,
        batch,
        options.seed,
        row_ids,
        options=options.static_options(),
        placement=current_placement(),
    )


def bucket(length: int) -> int:
    """Rounds a prompt length up to a power of two, at least 32, to limit compiled shapes."""
    return max(32, 1 << (length - 1).bit_length())


def prompt_lengths(batch: Batch) -> Int[Array, "B"]:
    return jnp.sum(batch.segment_ids > 0, axis=1)


def last_states(hidden: Float[Array, "B T D"], lengths: Int[Array, "B"]) -> Float[Array, "B 1 D"]:
    """Returns the hidden state at the last token of each prompt."""
    return jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)


# The placement is an argument only to be part of the compilation key; tracing reads it implicitly.
@functools.partial(jax.jit, static_argnames=("options", "placement"))
def _generate(
    model: MM1,
    batch: Batch,
    seed: Int[Array, ""],
    row_ids: Int[Array, "B"],
    *,
    options: DecodingOptions,
    placement: Placement | None,
) -> Int[Array, "B _"]:
    model = model.for_decoding()
    max_new_tokens, pad = options.max_new_tokens, options.pad
    num_rows, prompt_length = batch.tokens.shape
    keys_B = row_keys(seed, row_ids)
    lengths_B = prompt_lengths(batch)
    # The last token is chosen but never stored in the cache, so it needs no slot.
    caches = model.init_caches(num_rows, prompt_length + max_new_tokens - 1, options.cache_dtype)
    hidden_BTD, caches = model.prefill(batch, caches)

    def next_token(hidden_BTD: Array, ended_B: Array, step: Array) -> tuple[Array, Array]:
        logits_BV = model.logits(hidden_BTD)[:, 0]
        steps_B = jnp.broadcast_to(step, ended_B.shape)
        chosen_B = choose(logits_BV, options.forbidden, options.sampling, keys_B, steps_B)
        chosen_B = jnp.where(ended_B, pad, chosen_B)
        return chosen_B, ended_B | options.ends(chosen_B)

    def unfinished(carry) -> Array:
        step, _, _, ended_B, _ = carry
        return (step < max_new_tokens) & ~jnp.all(ended_B)

    def grow(carry):
        step, new_tokens, token_B, ended_B, caches = carry
        hidden_BTD, caches = model.decode_step(token_B, lengths_B + step - 1, caches)
        token_B, ended_B = next_token(hidden_BTD, ended_B, step)
        return step + 1, new_tokens.at[:, step].set(token_B), token_B, ended_B, caches

    token_B, ended_B = next_token(last_states(hidden_BTD, lengths_B), lengths_B == 0, jnp.int32(0))
    new_tokens = jnp.full((num_rows, max_new_tokens), pad, jnp.int32).at[:, 0].set(token_B)
    carry = (jnp.int32(1), new_tokens, token_B, ended_B, caches)
    _, new_tokens, *_ = jax.lax.while_loop(unfinished, grow, carry)
    return constrain(new_tokens, None, None)
