"""Greedy decoding with a key-value cache: a batch of prompts with images in, new tokens out.

The prompts are rows of a `Batch`, one document a row, padded on the right. One pass over them
fills the cache; then every row grows by a token a step, all rows at the same slot of the cache,
until each has ended. The padding between a prompt and its answer keeps its slots in the cache and
is never attended to.

Experts are always dropless here, so a row's answer does not depend on the rows beside it.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mm1_jax.batch import Batch
from mm1_jax.models.mm1 import MM1
from mm1_jax.sharding import Placement, constrain, current_placement


def generate(
    model: MM1,
    batch: Batch,
    *,
    max_new_tokens: int,
    eos: int,
    pad: int = 0,
    forbidden: tuple[int, ...] = (),
) -> Int[Array, "B _"]:
    """The `max_new_tokens` tokens that follow each prompt: up to and with `eos`, then `pad`.

    Compiled once for each shape of the batch and number of new tokens. Inside `use_mesh` it runs on
    the mesh, with the parameters as they are sharded; every process passes the same whole batch and
    gets all answers. A row without a prompt (all `segment_ids` 0) has no answer: `pad` throughout.

    Args:
        forbidden: Ids that are never chosen, whatever their logits; `pad` is always among them.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: must be at least 1")
    if eos in forbidden or eos == pad:
        raise ValueError(f"eos={eos} is forbidden or equals pad={pad}: no answer could ever end")
    return _generate(
        model,
        batch,
        max_new_tokens=max_new_tokens,
        eos=eos,
        pad=pad,
        forbidden=tuple(sorted({pad, *forbidden})),
        placement=current_placement(),
    )


def bucket(length: int) -> int:
    """The power of two, at least 32, that prompts are padded to: few shapes to compile."""
    return max(32, 1 << (length - 1).bit_length())


# The placement is an argument only to be part of the key: activations are placed while tracing.
@functools.partial(
    jax.jit, static_argnames=("max_new_tokens", "eos", "pad", "forbidden", "placement")
)
def _generate(
    model: MM1,
    batch: Batch,
    *,
    max_new_tokens: int,
    eos: int,
    pad: int,
    forbidden: tuple[int, ...],
    placement: Placement | None,
) -> Int[Array, "B _"]:
    model = model.cast()
    num_rows, prompt_length = batch.tokens.shape
    lengths_B = jnp.sum(batch.segment_ids > 0, axis=1)
    # The last token is chosen but never read, so it needs no slot.
    cache = model.init_cache(num_rows, prompt_length + max_new_tokens - 1)
    hidden_BTD, cache = model.prefill(batch, cache)
    last_BTD = jnp.take_along_axis(hidden_BTD, jnp.maximum(lengths_B - 1, 0)[:, None, None], axis=1)

    def choose(hidden_BTD: Float[Array, "B 1 D"], ended_B: Array) -> tuple[Array, Array]:
        chosen_B = greedy(model.logits(hidden_BTD)[:, 0], forbidden)
        chosen_B = jnp.where(ended_B, pad, chosen_B)
        return chosen_B, ended_B | (chosen_B == eos)

    def unfinished(carry) -> Array:
        step, _, _, ended_B, _ = carry
        return (step < max_new_tokens) & ~jnp.all(ended_B)

    def grow(carry):
        step, new_tokens, token_B, ended_B, cache = carry
        positions_B = lengths_B + step - 1
        hidden_BTD, cache = model.decode_step(token_B[:, None], positions_B[:, None], cache)
        token_B, ended_B = choose(hidden_BTD, ended_B)
        return step + 1, new_tokens.at[:, step].set(token_B), token_B, ended_B, cache

    token_B, ended_B = choose(last_BTD, lengths_B == 0)
    new_tokens = jnp.full((num_rows, max_new_tokens), pad, jnp.int32).at[:, 0].set(token_B)
    carry = (jnp.int32(1), new_tokens, token_B, ended_B, cache)
    _, new_tokens, *_ = jax.lax.while_loop(unfinished, grow, carry)
    return constrain(new_tokens, None, None)


def greedy(logits: Float[Array, "B V"], forbidden: tuple[int, ...]) -> Int[Array, "B"]:
    """The most likely token of each row that is not `forbidden`."""
    allowed_V = jnp.ones(logits.shape[-1], bool).at[jnp.array(forbidden, jnp.int32)].set(False)
    scores_BV = jnp.where(allowed_V[None], logits.astype(jnp.float32), -jnp.inf)
    return jnp.argmax(scores_BV, axis=-1).astype(jnp.int32)
