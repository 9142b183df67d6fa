"""Beam search: finds the most probable answers, scored by log probability / length ** penalty.

It follows the rules of Hugging Face transformers and reproduces its sequences and scores. Each step
takes the 2n best continuations of a row's n beams. Those that end are finished if they are among
the first n; the n best that do not end keep running. A row is done when the score of its best
running beam at this length is not above that of its worst finished beam.

Legend: B batch, V vocabulary, n beams, m selected beams.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mm1_jax.batch import Batch
from mm1_jax.decoding.generate import last_states, prompt_lengths
from mm1_jax.decoding.options import DecodingOptions
from mm1_jax.decoding.sampling import mask_forbidden
from mm1_jax.layers.kv_cache import Caches
from mm1_jax.models.mm1 import MM1
from mm1_jax.parallel.sharding import Placement, constrain, current_placement

# Score of a missing or excluded beam. It is finite, so that it can be divided by lengths.
_EXCLUDED = -1e9


class Beams(NamedTuple):
    """Answers, best first; `scores` are log probabilities / length ** length_penalty."""

    tokens: Int[Array, "B n _"]
    scores: Float[Array, "B n"]


def beam_search(
    model: MM1,
    batch: Batch,
    options: DecodingOptions,
    *,
    num_beams: int,
    length_penalty: float = 1.0,
) -> Beams:
    """Finds the best answers to each prompt, each ending with `eos` and then filled with `pad`.

    Like `generate`, it runs on a mesh inside `use_mesh`. The KV cache has `num_beams` rows per
    prompt. A row without a prompt gets answers of `pad` with score 0.

    Args:
        length_penalty: 0 compares log probabilities, 1 their means over tokens. Larger values
            prefer longer answers.

    Raises:
        ValueError: An option is invalid; the message names it.
    """
    if num_beams < 1:
        raise ValueError(f"num_beams={num_beams}: must be at least 1")
    if not options.sampling.is_greedy:
        raise ValueError(f"{options.sampling}: beam search does not sample; use greedy sampling")
    return _beam_search(
        model,
        batch,
        num_beams=num_beams,
        options=options.static_options(),
        length_penalty=float(length_penalty),
        placement=current_placement(),
    )


class _Search(NamedTuple):
    step: Int[Array, ""]
    running: Beams  # scores are log probabilities
    finished: Beams
    is_finished: Bool[Array, "B n"]
    is_open: Bool[Array, "B"]  # whether a running beam could still replace a finished one
    caches: Caches


@functools.partial(jax.jit, static_argnames=("num_beams", "options", "length_penalty", "placement"))
def _beam_search(
    model: MM1,
    batch: Batch,
    *,
    num_beams: int,
    options: DecodingOptions,
    length_penalty: float,
    placement: Placement | None,
) -> Beams:
    model, n = model.for_decoding(), num_beams
    max_new_tokens, pad = options.max_new_tokens, options.pad
    B, prompt_length = batch.tokens.shape
    lengths_B = prompt_lengths(batch)
    caches = model.init_caches(B, prompt_length + max_new_tokens - 1, options.cache_dtype)
    hidden_BTD, caches = model.prefill(batch, caches)
    first_B1D = last_states(hidden_BTD, lengths_B)

    def mean(scores: Array, length: Array) -> Array:
        return scores / length.astype(jnp.float32) ** length_penalty

    def take_step(search: _Search, hidden: Float[Array, "Bn 1 D"]) -> _Search:
        """Chooses the next token of every beam, which has `search.step` tokens."""
        logits = model.logits(hidden)[:, 0].astype(jnp.float32)
        scores = mask_forbidden(jax.nn.log_softmax(logits, axis=-1), options.forbidden).reshape(
            B, n, -1
        )
        V = scores.shape[-1]
        scores = (scores + search.running.scores[:, :, None]).reshape(B, n * V)
        scores, indices = jax.lax.top_k(scores, min(2 * n, n * V))
        parents, chosen = indices // V, (indices % V).astype(jnp.int32)
        tokens = _take(search.running.tokens, parents).at[:, :, search.step].set(chosen)
        length = search.step + 1
        ends = options.ends(chosen) | (length == max_new_tokens)

        running_scores, order = jax.lax.top_k(jnp.where(ends, _EXCLUDED, scores), n)
        running = Beams(_take(tokens, order), running_scores)
        rows = jnp.arange(B)[:, None] * n + _take(parents, order)
        caches = jax.tree.map(lambda x: jnp.take(x, rows.reshape(-1), axis=0), search.caches)

        new = ends & (jnp.arange(ends.shape[1]) < n)[None] & search.is_open[:, None]
        all_scores = jnp.concatenate(
            [search.finished.scores, jnp.where(new, mean(scores, length), _EXCLUDED)], axis=1
        )
        finished_scores, best = jax.lax.top_k(all_scores, n)
        finished = Beams(
            _take(jnp.concatenate([search.finished.tokens, tokens], axis=1), best), finished_scores
        )
        is_finished = _take(jnp.concatenate([search.is_finished, new], axis=1), best)
        worst = jnp.where(jnp.all(is_finished, axis=1), finished_scores[:, -1], _EXCLUDED)
        is_open = search.is_open & (mean(running_scores[:, 0], length) > worst)
        return _Search(length, running, finished, is_finished, is_open, caches)

    def unfinished(search: _Search) -> Array:
        return (search.step < max_new_tokens) & jnp.any(search.is_open)

    def grow(search: _Search) -> _Search:
        last = search.running.tokens[:, :, search.step - 1].reshape(-1)
        positions = jnp.repeat(lengths_B, n) + search.step - 1
        hidden, caches = model.decode_step(last, positions, search.caches)
        return take_step(search._replace(caches=caches), hidden)

    # All beams are identical at first, so only one of them may be continued.
    nothing = jnp.full((B, n), _EXCLUDED, jnp.float32)
    tokens = jnp.full((B, n, max_new_tokens), pad, jnp.int32)
    search = _Search(
        step=jnp.int32(0),
        running=Beams(tokens, nothing.at[:, 0].set(0)),
        finished=Beams(tokens, nothing),
        is_finished=jnp.zeros((B, n), bool),
        is_open=lengths_B > 0,
        caches=jax.tree.map(lambda x: jnp.repeat(x, n, axis=0), caches),
    )
    search = take_step(search, jnp.repeat(first_B1D, n, axis=0))
    search = jax.lax.while_loop(unfinished, grow, search)
    is_prompt = lengths_B > 0
    return Beams(
        constrain(
            jnp.where(is_prompt[:, None, None], search.finished.tokens, pad), None, None, None
        ),
        constrain(jnp.where(is_prompt[:, None], search.finished.scores, 0), None, None),
    )


def _take(x: Array, indices: Int[Array, "B m"]) -> Array:
    """Selects beams of each row by index."""
    return jnp.take_along_axis(x, indices.reshape(*indices.shape, *[1] * (x.ndim - 2)), axis=1)
