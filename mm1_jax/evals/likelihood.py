"""Likelihoods of continuations of a prompt, by which options are compared.

Prompt and continuation form one row. The last text of the prompt is tokenized together with the
continuation. If that text alone has n tokens, the tokens after the first n are the continuation's,
as in EleutherAI's lm-evaluation-harness (`TemplateLM._encode_pair`).

The hidden states of the scored positions are gathered before the output layer, and logits are
computed in chunks of positions, so that the logits of whole rows never exist. Experts are dropless:
a likelihood does not depend on the other rows of its batch, and padding only changes its rounding.

B batch rows   T target positions   C scored positions of a row   V vocabulary   D model dim
"""

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from mm1_jax.batch import Batch, Document, Example, Image, Text
from mm1_jax.data.examples import is_conversation, segment_ids
from mm1_jax.data.rows import RowShape, assemble
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer
from mm1_jax.decoding.generate import bucket
from mm1_jax.evals.answers import Likelihood
from mm1_jax.models.cross_entropy import token_losses
from mm1_jax.models.mm1 import MM1
from mm1_jax.parallel.sharding import Placement, constrain, current_placement

# Maximum number of logits of a chunk, over all devices: 256 MB of float32.
_MAX_LOGITS = 2**26
_MIN_SCORED = 8


@dataclass(frozen=True)
class LikelihoodRequest:
    """A prompt, and a continuation that begins with the space between them, if there is one.

    The prompt may show images and may have no text.
    """

    prompt: Document
    continuation: str


class LikelihoodScorer:
    """Computes likelihoods of requests in batches of few shapes.

    The numbers of positions, scored positions and pictures of a row are each padded to a power of
    two, and each combination compiles once.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        num_image_tokens: int = 0,
        image_size: int = 1,
        pixels: Callable[[Image], UInt8[np.ndarray, "s s 3"] | None] | None = None,
        max_length: int | None = None,
        batch_size: int = 16,
    ):
        """Images need `num_image_tokens`, `image_size` and `pixels`.

        Args:
            pixels: Returns the picture as the model sees it, or None if it cannot be decoded, which
                leaves its slot empty.
            max_length: Maximum positions of a row; None means no limit. A longer prompt loses its
                beginning except for bos, and an image is dropped as a whole.
        """
        for name, value in (("max_length", max_length), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        self._tokenizer, self._pixels = tokenizer, pixels
        self._num_image_tokens, self._image_size = num_image_tokens, image_size
        self._max_length, self._batch_size = max_length, batch_size

    def __call__(
        self,
        model: MM1,
        requests: Sequence[LikelihoodRequest],
        *,
        on_result: Callable[[int, Likelihood], object] | None = None,
    ) -> list[Likelihood]:
        """Returns the likelihood of each request, in order. Inside `use_mesh`, it uses the mesh.

        Every process passes the same requests and gets all likelihoods.

        Args:
            on_result: Called with the index of a request and its likelihood, as each is computed.

        Raises:
            ValueError: A continuation has no tokens or does not fit into a row, or a prompt shows
                an image and the model reads none.
        """
        return self._score(model, [self._row(request) for request in requests], on_result)

    def rolling(
        self,
        model: MM1,
        texts: Sequence[str],
        *,
        on_result: Callable[[int, Likelihood], object] | None = None,
    ) -> list[Likelihood]:
        """Returns the likelihoods of whole texts, predicting every token once.

        A text is scored in windows of `max_length` tokens, as in lm-evaluation-harness
        (`get_rolling_token_windows`). The first window begins with bos, and each other with the
        last token of the window before it. The last window is filled up at its start with tokens
        that are already scored.
        """
        rows: list[_Row] = []
        owners: list[int] = []
        for i, text in enumerate(texts):
            sequence = [self._tokenizer.bos, *self._tokenizer.encode(text)]
            for start, end, num_scored in _windows(len(sequence) - 1, self._max_length):
                rows.append(_row(sequence[start : end + 1], num_scored, [], text))
                owners.append(i)
        counts = Counter(owners)
        parts: list[list[Likelihood]] = [[] for _ in texts]
        found = [_total([], text) for text in texts]

        def take(number: int, part: Likelihood) -> None:
            i = owners[number]
            parts[i].append(part)
            if len(parts[i]) == counts[i]:
                found[i] = _total(parts[i], texts[i])
                if on_result is not None:
                    on_result(i, found[i])

        for i, one in enumerate(found):
            if not counts[i] and on_result is not None:
                on_result(i, one)
        self._score(model, rows, take)
        return found

    def _score(
        self,
        model: MM1,
        rows: "Sequence[_Row]",
        on_result: Callable[[int, Likelihood], object] | None = None,
    ) -> list[Likelihood]:
        groups: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for i, row in enumerate(rows):
            groups[row.shape].append(i)
        found: list[Likelihood | None] = [None] * len(rows)
        waiting: tuple[list[int], tuple[Array, Array]] | None = None

        def take(indices: list[int], results: tuple[Array, Array]) -> None:
            # The rows after the requests are padding.
            log_probabilities, is_greedy = map(np.asarray, results)
            for b, i in enumerate(indices):
                found[i] = one = Likelihood(
                    float(log_probabilities[b]),
                    bool(is_greedy[b]),
                    num_tokens=rows[i].num_scored,
                    num_bytes=rows[i].num_bytes,
                    num_cut=rows[i].num_cut,
                )
                if on_result is not None:
                    on_result(i, one)

        # The longest rows come first, so that running out of memory shows at once. A batch is
        # assembled while the device computes the previous one.
        for (length, num_scored, num_images), members in sorted(groups.items(), reverse=True):
            for start in range(0, len(members), self._batch_size):
                indices = members[start : start + self._batch_size]
                batch = assemble(
                    [rows[i].example for i in indices],
                    self._pixels or _no_pixels,
                    RowShape(length, num_images, self._image_size),
                    num_rows=self._batch_size,
                )
                results = _score(model, batch, num_scored=num_scored, placement=current_placement())
                if waiting is not None:
                    take(*waiting)
                waiting = indices, results
        if waiting is not None:
            take(*waiting)
        return [one for one in found if one is not None]

    def _row(self, request: LikelihoodRequest) -> "_Row":
        sequence, num_scored, images = self._sequence(request)
        sequence, images, num_cut = self._cut(sequence, num_scored, images)
        return _row(sequence, num_scored, images, request.continuation, num_cut)

    def _sequence(self, request: LikelihoodRequest) -> tuple[list[int], int, list[Image]]:
        """Returns the tokens from bos on, the number of scored ones at the end, and the images."""
        others, context = request.prompt.segments, ""
        if is_chat := is_conversation(request.prompt):
            # Every segment of a conversation is tokenized by itself, and so is the answer.
            head, tail = [], self._tokenizer.encode_after(request.continuation)
        else:
            if others and isinstance(others[-1], Text):
                others, context = others[:-1], others[-1].text
            head, tail = encode_pair(self._tokenizer, context, request.continuation)
        if not tail:
            raise ValueError(
                f"the continuation {request.continuation!r} adds no token after "
                f"{context[-40:]!r}; give one with text"
            )
        sequence, images = [self._tokenizer.bos], []
        for segment in others:
            if not isinstance(segment, Image):
                sequence += segment_ids(self._tokenizer, segment, is_chat=is_chat)
                continue
            if self._pixels is None or not self._num_image_tokens:
                raise ValueError("a prompt shows an image, but the model reads none")
            sequence += [self._tokenizer.image_token] * self._num_image_tokens
            images.append(segment)
        return [*sequence, *head, *tail], len(tail), images

    def _cut(
        self, sequence: list[int], num_scored: int, images: list[Image]
    ) -> tuple[list[int], list[Image], int]:
        """Cuts a sequence to a row by dropping tokens after bos; also returns their number."""
        limit = self._max_length
        # The last token is only predicted and takes no position.
        if limit is None or len(sequence) - 1 <= limit:
            return sequence, images, 0
        if num_scored > limit:
            raise ValueError(
                f"a continuation has {num_scored} tokens, but rows have max_length={limit} "
                "positions; set a larger max_length"
            )
        first = len(sequence) - limit
        image_token, size = self._tokenizer.image_token, self._num_image_tokens
        starts, place = [], 1
        while place < len(sequence):
            is_image = size > 0 and sequence[place] == image_token
            if is_image:
                starts.append(place)
            place += size if is_image else 1
        num_gone = sum(start < first for start in starts)
        if num_gone:
            first = max(first, starts[num_gone - 1] + size)
        return [sequence[0], *sequence[first:]], images[num_gone:], first - 1


@dataclass(frozen=True)
class _Row:
    example: Example
    num_scored: int
    num_bytes: int
    num_cut: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """The padded numbers of positions, scored positions and pictures."""
        # The model needs at least one image slot.
        num_images = _power_of_two(max(1, len(self.example.images)))
        num_scored = max(_MIN_SCORED, _power_of_two(self.num_scored))
        return bucket(len(self.example.tokens)), num_scored, num_images


def _row(
    sequence: Sequence[int], num_scored: int, images: Sequence[Image], text: str, num_cut: int = 0
) -> _Row:
    """Returns a row whose last `num_scored` tokens are scored; `text` gives its size in bytes."""
    tokens = np.array(sequence, np.int32)
    scored = np.arange(1, len(tokens)) >= len(tokens) - num_scored
    example = Example(
        tokens=tokens[:-1],
        targets=np.where(scored, tokens[1:], 0),
        loss_mask=scored,
        images=tuple(images),
    )
    return _Row(example, num_scored, _num_bytes(text), num_cut)


def _windows(num_tokens: int, max_length: int | None) -> Iterator[tuple[int, int, int]]:
    """Yields the positions [start, end) of each window over a text, and how many it scores.

    Position i predicts token i of the text, so position 0 holds bos.
    """
    size = max_length or max(1, num_tokens)
    for done in range(0, num_tokens, size):
        end = min(done + size, num_tokens)
        yield max(0, end - size), end, end - done


def _total(parts: Sequence[Likelihood], text: str) -> Likelihood:
    return Likelihood(
        math.fsum(part.log_probability for part in parts),
        all(part.is_greedy for part in parts),
        num_tokens=sum(part.num_tokens for part in parts),
        num_bytes=_num_bytes(text),
    )


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def encode_pair(
    tokenizer: Tokenizer, context: str, continuation: str
) -> tuple[list[int], list[int]]:
    """Tokenizes context and continuation as one text. Returns the tokens of each.

    Spaces at the end of the context count as part of the continuation, since tokens of most
    vocabularies begin with the space before a word.
    """
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    head = tokenizer.encode(kept) if kept else []
    return head, tokenizer.encode(kept + continuation)[len(head) :]


# `placement` only belongs to the cache key of jit: activations are placed while tracing.
@functools.partial(jax.jit, static_argnames=("num_scored", "placement"))
def _score(
    model: MM1, batch: Batch, *, num_scored: int, placement: Placement | None
) -> tuple[Float[Array, "B"], Bool[Array, "B"]]:
    """Returns the summed log-probability of each row's scored targets, and whether all are greedy.

    Args:
        num_scored: C, at least the scored targets of any row, which are its last positions.
    """
    model = model.cast()
    num_rows, length = batch.tokens.shape
    hidden_BTD = model(batch, dropless=True).hidden
    counts_B = jnp.sum(batch.loss_mask, axis=1)
    firsts_B = jnp.sum(batch.segment_ids > 0, axis=1) - counts_B
    numbers_C = jnp.arange(num_scored)
    scored_BC = numbers_C[None] < counts_B[:, None]
    places_BC = jnp.minimum(firsts_B[:, None] + numbers_C[None], length - 1)
    hidden_BCD = jnp.take_along_axis(hidden_BTD, places_BC[..., None], axis=1)
    targets_BC = jnp.take_along_axis(batch.targets, places_BC, axis=1)
    vocab_size = model.output_layer().weight.shape[0]
    size = _chunk_size(num_rows * vocab_size, num_scored)

    def part_scores(start: Array) -> tuple[Array, Array]:
        part = jax.lax.dynamic_slice_in_dim(hidden_BCD, start, size, axis=1)
        targets = jax.lax.dynamic_slice_in_dim(targets_BC, start, size, axis=1)
        logits = model.logits(constrain(part, "batch", None, None))
        losses, _ = token_losses(logits, targets)
        return losses, jnp.argmax(logits.astype(jnp.float32), axis=-1) == targets

    losses, is_greedy = (
        jnp.moveaxis(x, 0, 1).reshape(num_rows, num_scored)
        for x in jax.lax.map(part_scores, jnp.arange(0, num_scored, size))
    )
    log_probabilities_B = -jnp.sum(jnp.where(scored_BC, losses, 0.0), axis=1)
    # Replicated, so that every process can read them.
    return (
        constrain(log_probabilities_B, None),
        constrain(jnp.all(is_greedy | ~scored_BC, axis=1), None),
    )


def _chunk_size(logits_per_position: int, num_scored: int) -> int:
    """Returns the number of positions per row in a chunk of logits, a power of two."""
    most = max(1, _MAX_LOGITS // logits_per_position)
    return min(num_scored, 1 << (most.bit_length() - 1))


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _no_pixels(image: Image) -> None:
    raise AssertionError("a request with an image is refused")
