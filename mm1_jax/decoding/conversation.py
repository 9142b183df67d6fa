"""Decoding of conversations: the KV cache is kept over turns, and each picture is encoded once.

A reply takes the whole prompt and gives the answer that `generate` gives. Only the positions after
the longest common prefix of the prompt and the cache are computed, usually the end of the last
answer and the new question. A prompt may differ earlier, because an answer was tokenized again in
another way or a turn was taken back; more positions are then computed again.

A program is compiled for each number of new positions, rounded up to a power of two, with each
number of new pictures.
"""

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from mm1_jax.batch import Batch
from mm1_jax.decoding.generate import bucket, last_states, prompt_lengths
from mm1_jax.decoding.options import DecodingOptions
from mm1_jax.decoding.sampling import choose, row_keys
from mm1_jax.layers.kv_cache import Caches
from mm1_jax.models.mm1 import MM1
from mm1_jax.parallel.sharding import Placement, current_placement


class ContextFull(ValueError):
    """A prompt that leaves no room for an answer."""


class PromptImage(NamedTuple):
    """An image of a prompt.

    Attributes:
        key: Identifies the image; images with equal keys have equal pixels.
        pixels: Returns the pixels; called only if the image is encoded.
    """

    key: Hashable
    pixels: Callable[[], UInt8[np.ndarray, "h w 3"]]


class ConversationDecoder:
    """Answers prompts that continue each other.

    It holds an additional copy of the parameters, cast and unstacked by layer. To run on a mesh,
    create and use it inside `use_mesh`.
    """

    def __init__(
        self,
        model: MM1,
        options: DecodingOptions,
        *,
        length: int,
        image_size: int,
        steps_per_check: int = 8,
    ):
        """Casts the parameters and allocates the cache.

        Args:
            length: Maximum number of positions of a conversation, including the last answer.
            image_size: Side of the images in pixels.
            steps_per_check: Number of tokens that are decoded before they are yielded.
        """
        for name, value in (("length", length), ("steps_per_check", steps_per_check)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        self.length = length
        self._image_token, self._image_size = model.image_token, image_size
        self._num_image_tokens = getattr(model, "num_image_tokens", 0)
        self._seed, self._options = options.seed, options.static_options()
        self._num_steps = steps_per_check
        self._model = _for_decoding(model, placement=current_placement())
        self._caches: Caches | None = None
        self.clear()

    def clear(self) -> None:
        """Forgets the conversation."""
        # The tokens in the cache, and the keys of their images.
        self._tokens: list[int] = []
        self._keys: list[Hashable] = []

    def reply(
        self, tokens: Sequence[int], images: Sequence[PromptImage] = (), *, row_id: int = 0
    ) -> Iterator[int]:
        """Yields the tokens of the answer in groups; the last token ends it.

        An answer that fills the cache, or has `max_new_tokens` tokens, may lack that token. An
        iterator that is not exhausted leaves the cache usable.

        Args:
            tokens: The whole prompt from its first token on, with image tokens.
            images: The images of the prompt, in order.
            row_id: Together with the seed, determines the random numbers of the answer.

        Raises:
            ContextFull: The prompt leaves no room for an answer.
        """
        tokens = list(tokens)
        # The last token of an answer is chosen but never stored in the cache.
        room = self.length - len(tokens) + 1
        if room < 1:
            raise ContextFull(
                f"the conversation takes {len(tokens)} positions of {self.length}, which leaves no "
                "room for an answer"
            )
        if tokens.count(self._image_token) != len(images) * self._num_image_tokens:
            raise ValueError(
                f"the prompt has {tokens.count(self._image_token)} image tokens and {len(images)} "
                f"images of {self._num_image_tokens}"
            )
        return self._reply(tokens, images, row_id, min(room, self._options.max_new_tokens))

    def _reply(
        self, tokens: list[int], images: Sequence[PromptImage], row_id: int, most: int
    ) -> Iterator[int]:
        caches = self._taken_caches()
        if caches is None:
            self.clear()
            caches = _empty(
                self._model,
                length=self.length,
                cache_dtype=self._options.cache_dtype,
                placement=current_placement(),
            )
        start, first_image = self._common(tokens, [image.key for image in images])
        prompt = self._batch(tokens[start:], images[first_image:], self.length - start)
        keys = row_keys(self._seed, jnp.array([row_id]))
        self._caches, token = _read(
            self._model,
            caches,
            prompt,
            jnp.array([start], jnp.int32),
            keys,
            is_first=not start,
            options=self._options,
            placement=current_placement(),
        )
        self._tokens, self._keys = tokens, [image.key for image in images]
        answer = [int(token[0])]
        yield answer[0]
        while len(answer) < most and not self._options.ends(answer[-1]):
            num_steps = min(self._num_steps, most - len(answer))
            self._caches, found = _advance(
                self._model,
                self._taken_caches(),
                token,
                jnp.array([len(tokens) + len(answer) - 1], jnp.int32),
                jnp.array([len(answer)], jnp.int32),
                jnp.int32(num_steps),
                keys,
                options=self._options,
                most_steps=self._num_steps,
                placement=current_placement(),
            )
            group = np.asarray(found)[0, :num_steps].tolist()
            ends = [i for i, each in enumerate(group, 1) if self._options.ends(each)]
            group = group[: ends[0]] if ends else group
            answer += group
            token = jnp.array(answer[-1:], jnp.int32)
            self._tokens = tokens + answer[:-1]
            yield from group

    def _taken_caches(self) -> Caches | None:
        """Returns the caches, which a program may then overwrite.

        They are lost if that program is interrupted, and the next reply begins with empty ones.
        """
        caches, self._caches = self._caches, None
        return caches

    def _common(self, tokens: list[int], keys: list[Hashable]) -> tuple[int, int]:
        """Returns how many first positions and images of a prompt are in the cache.

        At least one position of the prompt is not, because the answer needs its hidden state.
        """
        start = num_images = 0
        while start < min(len(tokens) - 1, len(self._tokens)):
            if tokens[start] != self._tokens[start]:
                break
            size = 1
            if tokens[start] == self._image_token:
                size = self._num_image_tokens
                if num_images >= len(self._keys) or keys[num_images] != self._keys[num_images]:
                    break
                if start + size >= len(tokens):
                    break
                num_images += 1
            start += size
        return start, num_images

    def _batch(self, tokens: list[int], images: Sequence[PromptImage], room: int) -> Batch:
        """Returns a row of new positions; the image buffer has a slot for each new image."""
        length, size = min(bucket(len(tokens)), room), self._image_size
        row, segment_ids = np.zeros((1, length), np.int32), np.zeros((1, length), np.int32)
        row[0, : len(tokens)], segment_ids[0, : len(tokens)] = tokens, 1
        pixels = np.zeros((len(images), size, size, 3), np.uint8)
        for slot, image in enumerate(images):
            pixels[slot] = image.pixels()
        return Batch(
            tokens=row,
            targets=np.zeros_like(row),
            loss_mask=np.zeros(row.shape, bool),
            positions=np.arange(length, dtype=np.int32)[None] * segment_ids,
            segment_ids=segment_ids,
            corpus_ids=segment_ids - 1,
            images=pixels,
            image_index=np.arange(len(images), dtype=np.int32)[None],
        )


@functools.partial(jax.jit, static_argnames=("placement",))
def _for_decoding(model: MM1, *, placement: Placement | None) -> MM1:
    return model.for_decoding()


@functools.partial(jax.jit, static_argnames=("length", "cache_dtype", "placement"))
def _empty(
    model: MM1, *, length: int, cache_dtype: str | None, placement: Placement | None
) -> Caches:
    return model.init_caches(1, length, cache_dtype)


@functools.partial(
    jax.jit, static_argnames=("is_first", "options", "placement"), donate_argnames=("caches",)
)
def _read(
    model: MM1,
    caches: Caches,
    prompt: Batch,
    start: Int[Array, "1"],
    keys: Array,
    *,
    is_first: bool,
    options: DecodingOptions,
    placement: Placement | None,
) -> tuple[Caches, Int[Array, "1"]]:
    """Extends the cache from position `start`, and returns the first token of the answer.

    Args:
        is_first: Fills the cache from its first position instead, which `prefill` does faster.
    """
    if is_first:
        hidden, caches = model.prefill(prompt, caches)
    else:
        hidden, caches = model.extend(prompt, start, caches)
    return caches, _first_token(model, hidden, prompt, keys, options)


def _first_token(
    model: MM1,
    hidden: Float[Array, "1 T D"],
    prompt: Batch,
    keys: Array,
    options: DecodingOptions,
) -> Int[Array, "1"]:
    logits = model.logits(last_states(hidden, prompt_lengths(prompt)))[:, 0]
    return choose(logits, options.forbidden, options.sampling, keys, jnp.zeros(1, jnp.int32))


@functools.partial(
    jax.jit,
    static_argnames=("options", "most_steps", "placement"),
    donate_argnames=("caches",),
)
def _advance(
    model: MM1,
    caches: Caches,
    token: Int[Array, "1"],
    length: Int[Array, "1"],
    step: Int[Array, "1"],
    num_steps: Int[Array, ""],
    keys: Array,
    *,
    options: DecodingOptions,
    most_steps: int,
    placement: Placement | None,
) -> tuple[Caches, Int[Array, "1 _"]]:
    """Decodes up to `num_steps` tokens after `token`; `pad` after the end of the answer.

    Args:
        length: The number of positions in the cache.
        step: The number of tokens of the answer.
    """

    def unfinished(carry) -> Array:
        i, _, token, _ = carry
        return (i < num_steps) & ((i == 0) | ~jnp.any(options.ends(token)))

    def grow(carry):
        i, caches, token, found = carry
        hidden, caches = model.decode_step(token, length + i, caches)
        logits = model.logits(hidden)[:, 0]
        token = choose(logits, options.forbidden, options.sampling, keys, step + i)
        return i + 1, caches, token, found.at[:, i].set(token)

    found = jnp.full((1, most_steps), options.pad, jnp.int32)
    _, caches, _, found = jax.lax.while_loop(unfinished, grow, (jnp.int32(0), caches, token, found))
    return caches, found
