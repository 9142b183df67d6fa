"""Continuous batching: requests of unequal length share a batch, and one that ends makes room.

The engine has a cache of so many rows, the slots. A request is read by itself, its prompt padded to
one of a few lengths, and its keys and values go to a free slot; then all slots grow together, a few
steps at a time, after which the host looks for what has ended: by eos, by a stop string or by its
length. Prompts that begin alike, with the same exemplars for instance, can share what was made of
the beginning.

Compiled are one program of steps, and one for each shape of a prompt, with and without a prefix.

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
    """KV cache of a shared prompt prefix, which takes `length` positions."""

    caches: Caches
    length: int


@dataclass(frozen=True)
class Request:
    """A prompt to be answered.

    Attributes:
        prompt: A batch of one row, padded on the right; its positions count from 0, whatever comes
            before them. Requests whose prompts are of one shape share a program.
        prefix: What the prompt goes on from, as `Engine.prefix` makes it.
        row_id: With the engine's seed, it decides what is drawn at random.
    """

    prompt: Batch
    prefix: Prefix | None = None
    row_id: int = 0


class _State(NamedTuple):
    """State of the slots. A row that has ended, or that holds no request, no longer grows."""

    caches: Caches
    tokens: Int[Array, "B"]  # the last one of each answer, which has not been read
    lengths: Int[Array, "B"]  # how many positions have been
    steps: Int[Array, "B"]  # tokens of the answer
    ended: Bool[Array, "B"]
    row_ids: Int[Array, "B"]


@dataclass
class _Row:
    """A request in its slot. The first token is on the device until the answer is looked at."""

    index: int
    tokens: list[Any] = field(default_factory=list)


class Engine:
    """Answers requests as `generate` answers each alone, many at once.

    It keeps the parameters once more, cast, those of each layer by themselves. Inside `use_mesh`
    it runs on the mesh; make it and use it there.
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
            options: An answer ends with the token that completes one of the stop strings.
            cache_length: The most positions of a row, prefix, prompt and answer.
            decode: Tokens to text; needed by stop strings.
            steps_per_check: After how many steps the host looks at the answers. Until then, slots
                that have ended stand idle.

        Raises:
            ValueError: An option that cannot be; it is named.
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
                f"stop_strings={options.stop_strings} need decode, which makes text of tokens"
            )
        self._num_slots, self._cache_length, self._decode = num_slots, cache_length, decode
        self._seed, self._stop_strings = options.seed, options.stop_strings
        self._options, self._num_steps = options.of_program(), steps_per_check
        self._model = _for_decoding(model, placement=current_placement())

    def prefix(self, batch: Batch) -> Prefix:
        """Reads what prompts have in common, a batch of one row, once.

        With a cache in fewer bits than the model computes in, those who go on from it read what was
        rounded; who reads a prompt as a whole does not.
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
        """The number of each request among them and its answer's tokens, as they end.

        An answer is up to and with `eos`, or the token that completes a stop string. Requests are
        taken as slots get free, so that an iterator may make them meanwhile.

        Raises:
            ValueError: A prompt that is empty, or for which there is no room.
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
                if (answer := self._ended(row.tokens)) is not None:
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
        # The last token is chosen and not read.
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
            raise ValueError(f"{name}: a batch of one row, and this one has {len(batch.tokens)}")
        if not (length := int(np.sum(np.asarray(batch.segment_ids) > 0))):
            raise ValueError(f"{name}: the row is empty")
        return length

    def _ended(self, tokens: Sequence[int]) -> list[int] | None:
        """The answer, or None where it goes on."""
        options = self._options
        tokens = list(tokens[: options.max_new_tokens])
        is_whole = len(tokens) == options.max_new_tokens
        if options.eos in tokens:
            tokens, is_whole = tokens[: tokens.index(options.eos) + 1], True
        if self._stops(tokens):
            # Not where it was looked for: an answer must not depend on that.
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
    return model.prefill(batch, model.init_caches(*batch.tokens.shape, cache_dtype))[1]


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
    """Reads a prompt into a slot; its first token is returned apart as well."""
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
        ended=state.ended.at[slot].set((token == options.eos) | (options.max_new_tokens == 1)),
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
    """The next `num_steps` tokens of every slot; `pad` behind an end."""
    keys = row_keys(seed, state.row_ids)

    def grow(i: Array, carry: tuple[_State, Array]) -> tuple[_State, Array]:
        state, new_tokens = carry
        hidden, caches = model.decode_step(state.tokens, state.lengths, state.caches)
        logits = model.logits(hidden)[:, 0]
        tokens = choose(logits, options.forbidden, options.sampling, keys, state.steps)
        tokens = jnp.where(state.ended, options.pad, tokens)
        grows = (~state.ended).astype(jnp.int32)
        steps = state.steps + grows
        ended = state.ended | (tokens == options.eos) | (steps >= options.max_new_tokens)
        state = _State(caches, tokens, state.lengths + grows, steps, ended, state.row_ids)
        return state, new_tokens.at[:, i].set(tokens)

    new_tokens = jnp.full((len(state.tokens), num_steps), options.pad, jnp.int32)
    return jax.lax.fori_loop(0, num_steps, grow, (state, new_tokens))


def _insert(slots: Array, new: Array, row: Any = 0) -> Array:
    return jax.lax.dynamic_update_slice(slots, new, (row, *[0] * (slots.ndim - 1)))
