"""Continuous batching: requests of unequal length share a batch; finished ones free their slots.

The engine has a KV cache with a fixed number of rows, called slots. Each request is prefilled on
its own, and its keys and values are copied to a free slot. Then all slots are decoded together for
a few steps, after which the host looks for answers that have ended by eos, stop string or length.
Prompts with a common beginning, such as the same few-shot examples, can share its KV cache.

Two kinds of programs are compiled: one for the decoding steps, and one for each shape of a prompt,
with and without a prefix.

Legend: B slots, T positions of a prompt, P positions of a prefix.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from mm1_jax.batch import Batch
from mm1_jax.decoding.generate import last_states, prompt_lengths
from mm1_jax.decoding.options import DecodingOptions, before_stop
from mm1_jax.decoding.sampling import choose, row_keys
from mm1_jax.layers.kv_cache import Caches
from mm1_jax.models.mm1 import MM1
from mm1_jax.parallel.sharding import Placement, current_placement


class Prefix(NamedTuple):
    """KV cache of a shared prompt prefix of `length` positions."""

    caches: Caches
    length: int


@dataclass(frozen=True)
class Request:
    """A prompt to answer.

    Attributes:
        prompt: A batch of one row, padded on the right. Positions start at 0, even after a prefix.
            Prompts of the same shape share a compiled program.
        prefix: Prefix that the prompt continues, from `Engine.prefix`.
        row_id: Together with the engine's seed, determines the random numbers of the answer.
    """

    prompt: Batch
    prefix: Prefix | None = None
    row_id: int = 0


class _State(NamedTuple):
    """State of the slots. A slot whose answer has ended, or without a request, does not grow."""

    caches: Caches
    tokens: Int[Array, "B"]  # last token of each answer, not yet in the cache
    lengths: Int[Array, "B"]  # number of positions in the cache
    steps: Int[Array, "B"]  # number of tokens of the answer
    ended: Bool[Array, "B"]
    row_ids: Int[Array, "B"]


@dataclass
class _Row:
    """A request in a slot. Its first token stays on the device until the next check."""

    index: int
    tokens: list[Any] = field(default_factory=list)


class Engine:
    """Answers many requests at once, each with the same answer that `generate` would give.

    It holds an additional copy of the parameters, cast and unstacked by layer. To run on a mesh,
    create and use the engine inside `use_mesh`.
    """

    def __init__(
        self,
        model: MM1,
        options: DecodingOptions,
        *,
        num_slots: int,
        cache_length: int,
        decode: Callable[[Sequence[int]], str] | None = None,
        steps_per_check: int = 8,
    ):
        """Casts the parameters.

        Args:
            options: Decoding options. An answer ends with the token that completes a stop string.
            cache_length: Maximum number of positions per slot: prefix, prompt and answer.
            decode: Converts tokens to text; required by stop strings.
            steps_per_check: Number of decoding steps between checks for finished answers. Slots
                whose answers have ended are idle until the next check.

        Raises:
            ValueError: An option is invalid; the message names it.
        """
        for name, value in (("num_slots", num_slots), ("steps_per_check", steps_per_check)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if cache_length <= options.max_new_tokens:
            raise ValueError(
                f"cache_length={cache_length}: must be above max_new_tokens="
                f"{options.max_new_tokens}, to hold a prompt as well"
            )
        if options.stop_strings and decode is None:
            raise ValueError(
                f"stop_strings={options.stop_strings} need decode, which converts tokens to text"
            )
        self._num_slots, self._cache_length, self._decode = num_slots, cache_length, decode
        self._seed, self._stop_strings = options.seed, options.stop_strings
        self._options, self._num_steps = options.static_options(), steps_per_check
        self._model = _for_decoding(model, placement=current_placement())

    def prefix(self, batch: Batch) -> Prefix:
        """Prefills a prefix that prompts share, a batch of one row.

        If the cache dtype has fewer bits than the compute dtype, prompts that continue the prefix
        attend to its rounded keys and values, unlike a prompt that is prefilled as a whole.
        """
        length = self._length(batch, "prefix")
        caches = _read_prefix(
            self._model,
            batch,
            cache_dtype=self._options.cache_dtype,
            placement=current_placement(),
        )
        return Prefix(caches, length)

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[int]]]:
        """Yields the index of each request and the tokens of its answer, as answers end.

        An answer includes `eos`, or the token that completes a stop string. Requests are consumed
        as slots become free, so a lazy iterator is not exhausted ahead of time.

        Raises:
            ValueError: A prompt is empty or too long for the cache.
        """
        waiting = enumerate(requests)
        state = self._empty()
        rows: dict[int, _Row] = {}
        while True:
            for slot in range(self._num_slots):
                if slot not in rows and (following := next(waiting, None)) is not None:
                    index, request = following
                    state, first = self._admit(state, slot, request)
                    rows[slot] = _Row(index, [first])
            if not rows:
                return
            state, new_tokens = _advance(
                self._model,
                state,
                self._seed,
                options=self._options,
                num_steps=self._num_steps,
                placement=current_placement(),
            )
            columns = np.asarray(new_tokens)
            for slot, row in list(rows.items()):
                row.tokens = [int(token) for token in (*row.tokens, *columns[slot])]
                if (answer := self._ended_answer(row.tokens)) is not None:
                    del rows[slot]
                    yield row.index, answer

    def _empty(self) -> _State:
        return _empty(
            self._model,
            num_slots=self._num_slots,
            cache_length=self._cache_length,
            cache_dtype=self._options.cache_dtype,
            placement=current_placement(),
        )

    def _admit(self, state: _State, slot: int, request: Request) -> tuple[_State, Array]:
        prefix = request.prefix
        length = self._length(request.prompt, "prompt") + (prefix.length if prefix else 0)
        # The last token is chosen but never stored in the cache.
        if length + self._options.max_new_tokens - 1 > self._cache_length:
            raise ValueError(
                f"prompt of {length} positions, with its prefix, and max_new_tokens="
                f"{self._options.max_new_tokens}: above cache_length={self._cache_length}"
            )
        return _admit(
            self._model,
            state,
            request.prompt,
            None if prefix is None else prefix.caches,
            0 if prefix is None else prefix.length,
            slot,
            request.row_id,
            self._seed,
            options=self._options,
            placement=current_placement(),
        )

    def _length(self, batch: Batch, name: str) -> int:
        if len(batch.tokens) != 1:
            raise ValueError(f"{name}: expected a batch of one row, got {len(batch.tokens)} rows")
        if not (length := int(np.sum(np.asarray(batch.segment_ids) > 0))):
            raise ValueError(f"{name}: the row is empty")
        return length

    def _ended_answer(self, tokens: Sequence[int]) -> list[int] | None:
        """Returns the answer if it has ended, otherwise None."""
        options = self._options
        tokens = list(tokens[: options.max_new_tokens])
        is_whole = len(tokens) == options.max_new_tokens
        if end := next((i for i, token in enumerate(tokens, 1) if options.ends(token)), 0):
            tokens, is_whole = tokens[:end], True
        if self._stops(tokens):
            # End at the token that completes the stop string, whenever the check happens.
            number = next(i for i in range(1, len(tokens) + 1) if self._stops(tokens[:i]))
            return tokens[:number]
        return tokens if is_whole else None

    def _stops(self, tokens: Sequence[int]) -> bool:
        if self._decode is None or not self._stop_strings:
            return False
        text = self._decode(tokens)
        return before_stop(text, self._stop_strings) != text


@functools.partial(jax.jit, static_argnames=("placement",))
def _for_decoding(model: MM1, *, placement: Placement | None) -> MM1:
    return model.for_decoding()


@functools.partial(
    jax.jit, static_argnames=("num_slots", "cache_length", "cache_dtype", "placement")
)
def _empty(
    model: MM1,
    *,
    num_slots: int,
    cache_length: int,
    cache_dtype: str | None,
    placement: Placement | None,
) -> _State:
    zeros = jnp.zeros(num_slots, jnp.int32)
    return _State(
        caches=model.init_caches(num_slots, cache_length, cache_dtype),
        tokens=zeros,
        lengths=zeros,
        steps=zeros,
        ended=jnp.ones(num_slots, bool),
        row_ids=zeros,
    )


@functools.partial(jax.jit, static_argnames=("cache_dtype", "placement"))
def _read_prefix(
    model: MM1, batch: Batch, *, cache_dtype: str | None, placement: Placement | None
) -> Caches:
    num_rows, length = batch.tokens.shape
    return model.prefill(batch, model.init_caches(num_rows, length, cache_dtype))[1]


@functools.partial(jax.jit, static_argnames=("options", "placement"), donate_argnames=("state",))
def _admit(
    model: MM1,
    state: _State,
    prompt: Batch,
    prefix: Caches | None,
    prefix_length: Int[Array, ""],
    slot: Int[Array, ""],
    row_id: Int[Array, ""],
    seed: Int[Array, ""],
    *,
    options: DecodingOptions,
    placement: Placement | None,
) -> tuple[_State, Int[Array, ""]]:
    """Prefills a prompt into a slot; also returns the first token of the answer."""
    T, length = prompt.tokens.shape[1], prompt_lengths(prompt)
    if prefix is None:
        caches = model.init_caches(1, T, options.cache_dtype)
        hidden, caches = model.prefill(prompt, caches)
    else:
        caches = model.init_caches(1, prefix[0].num_slots + T, options.cache_dtype)
        caches = jax.tree.map(_insert, caches, prefix)
        hidden, caches = model.extend(prompt, prefix_length[None], caches)
    logits = model.logits(last_states(hidden, length))[:, 0]
    keys = row_keys(seed, row_id[None])
    (token,) = choose(logits, options.forbidden, options.sampling, keys, jnp.zeros(1, jnp.int32))
    number = state.caches[0].num_slots
    inserted = jax.tree.map(
        lambda slots, new: _insert(slots, new[:, :, :number], slot), state.caches, caches
    )
    return _State(
        caches=inserted,
        tokens=state.tokens.at[slot].set(token),
        lengths=state.lengths.at[slot].set(length[0] + prefix_length),
        steps=state.steps.at[slot].set(1),
        ended=state.ended.at[slot].set(options.ends(token) | (options.max_new_tokens == 1)),
        row_ids=state.row_ids.at[slot].set(row_id),
    ), token


@functools.partial(
    jax.jit, static_argnames=("options", "num_steps", "placement"), donate_argnames=("state",)
)
def _advance(
    model: MM1,
    state: _State,
    seed: Int[Array, ""],
    *,
    options: DecodingOptions,
    num_steps: int,
    placement: Placement | None,
) -> tuple[_State, Int[Array, "B _"]]:
    """Decodes the next `num_steps` tokens of every slot; `pad` after the end of an answer."""
    keys = row_keys(seed, state.row_ids)

    def grow(i: Array, carry: tuple[_State, Array]) -> tuple[_State, Array]:
        state, new_tokens = carry
        hidden, caches = model.decode_step(state.tokens, state.lengths, state.caches)
        logits = model.logits(hidden)[:, 0]
        tokens = choose(logits, options.forbidden, options.sampling, keys, state.steps)
        tokens = jnp.where(state.ended, options.pad, tokens)
        grows = (~state.ended).astype(jnp.int32)
        steps = state.steps + grows
        ended = state.ended | options.ends(tokens) | (steps >= options.max_new_tokens)
        state = _State(caches, tokens, state.lengths + grows, steps, ended, state.row_ids)
        return state, new_tokens.at[:, i].set(tokens)

    new_tokens = jnp.full((len(state.tokens), num_steps), options.pad, jnp.int32)
    return jax.lax.fori_loop(0, num_steps, grow, (state, new_tokens))


def _insert(slots: Array, new: Array, row: Any = 0) -> Array:
    return jax.lax.dynamic_update_slice(slots, new, (row, *[0] * (slots.ndim - 1)))
