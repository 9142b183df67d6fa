"""Document -> Example: tokenize, reserve the image tokens, shift the targets, mask the loss.

    document   Image                          Text "two circles"
    sequence   bos   image image image image  two     circles  eos
    tokens     bos   image image image image  two     circles
    targets    0     0     0     0     two    circles eos
    loss_mask  .     .     .     .     x      x       x

The sequence is one longer than the example: `tokens` lacks its last entry, `targets` its first.
Image placeholders are never targets; the first text token after an image is one, although its
input is an image token. A document that is too long is truncated at a token, never inside an image.
It then has no end-of-sequence token, because it does not end there. Neither has a part of a
document that continues in the next part.

A conversation has markup between its texts, and a stop token after each answer:

    document   Markup "User:"  Text " a cat?"   Markup " Assistant:"  Text " yes"  Stop
    sequence   bos  User :     a cat ?          Assistant :           yes          eos
    scored     .    .    .     . .   .          .         .           x            x

Every segment is tokenized by itself, so the tokens of a prompt are the first tokens of the whole
conversation, and the scored ones are exactly the answers and their stops. A conversation is never
truncated; one that is longer than a row is a bad record.
"""

import sys

import numpy as np

from mm1_jax.batch import Document, Example, Image, Markup, Stop, Text
from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.splitting import TooLong
from mm1_jax.data.tiling import Tiling
from mm1_jax.data.tokenizers.sentencepiece import Tokenizer


class ExampleBuilder:
    """Turns documents into examples for a model whose images take `num_image_tokens` positions.

    With 0 the model is text-only, and a document with images is a bad record.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        num_image_tokens: int,
        max_sequence_length: int,
        max_images: int,
        tiling: Tiling | None = None,
    ):
        least = 1 if max_images else 0
        if (
            num_image_tokens < least
            or max_images < 0
            or max_sequence_length <= max(num_image_tokens, least)
        ):
            raise ValueError(
                f"max_sequence_length={max_sequence_length}, num_image_tokens={num_image_tokens}, "
                f"max_images={max_images}: a row must have room for one image and a text token. "
                "Make input.max_sequence_length longer, or let the connector emit fewer tokens."
            )
        if num_image_tokens and tokenizer.image_token in (tokenizer.bos, tokenizer.eos):
            raise ValueError(
                f"input.tokenizer: {type(tokenizer).__name__} has no token that stands for an "
                "image; take another tokenizer, or train a model of text"
            )
        self.tokenizer = tokenizer
        self.num_image_tokens = num_image_tokens
        self.max_sequence_length = max_sequence_length
        self.max_images = max_images
        self.tiling = tiling
        # Documents passed to `lengths` that were truncated.
        self.num_truncated = 0

    def without_limits(self) -> "ExampleBuilder":
        """Returns a builder for prompts, which may be longer and have more images than a row."""
        return ExampleBuilder(
            self.tokenizer,
            num_image_tokens=self.num_image_tokens,
            max_sequence_length=sys.maxsize,
            max_images=sys.maxsize if self.num_image_tokens else 0,
            tiling=self.tiling,
        )

    def tiled(self, document: Document) -> Document:
        """Returns the document with the views of its pictures."""
        return document if self.tiling is None else self.tiling.document(document)

    def example(self, document: Document) -> Example:
        """Returns the example to train on."""
        sequence, scored, images = self._tokenize(document)
        if is_conversation(document):
            self._check_fits(len(sequence) - 1, len(images))
        sequence, scored, images = self._cut(sequence, scored, images)
        tokens = np.array(sequence, np.int32)
        self._check_range(tokens)
        is_image = tokens == self.tokenizer.image_token
        return Example(
            tokens=tokens[:-1],
            targets=np.where(is_image, 0, tokens)[1:],
            loss_mask=np.array(scored, bool)[1:],
            images=tuple(images),
        )

    def lengths(self, document: Document) -> tuple[int, int]:
        """Returns the numbers of positions and images of `example(document)`; reads no image."""
        whole = self._tokenize(document)
        if is_conversation(document):
            self._check_fits(len(whole[0]) - 1, len(whole[2]))
        sequence, _, images = self._cut(*whole)
        self.num_truncated += sequence is not whole[0]
        return len(sequence) - 1, len(images)

    def sizes(self, document: Document) -> list[int]:
        """Returns the number of positions that each segment takes; an image is one view."""
        is_chat = is_conversation(document)
        return [
            self.num_image_tokens
            if isinstance(segment, Image)
            else len(segment_ids(self.tokenizer, segment, is_chat=is_chat))
            for segment in document.segments
        ]

    def fingerprint(self) -> str:
        """Describes everything that determines the lengths of a document."""
        return (
            f"tokenizer={self.tokenizer.fingerprint()} num_image_tokens={self.num_image_tokens} "
            f"max_sequence_length={self.max_sequence_length} max_images={self.max_images}"
            + (f" tiling={self.tiling.fingerprint()}" if self.tiling is not None else "")
        )

    def prompt(self, document: Document) -> Example:
        """Returns the example to generate from: every token is an input, none is a target.

        A prompt is never truncated, because that would lose the question at its end.
        """
        sequence, _, images = self._tokenize(document)
        # The end of a sequence is where the answer goes; a conversation has none.
        length = len(sequence) - document.ends
        if length > self.max_sequence_length or len(images) > self.max_images:
            raise ValueError(
                f"The prompt takes {length} positions and {len(images)} images, but "
                f"max_sequence_length={self.max_sequence_length} and max_images={self.max_images}. "
                "Use fewer shots, or raise these fields of the input."
            )
        tokens = np.array(sequence[:length], np.int32)
        self._check_range(tokens)
        return Example(
            tokens=tokens,
            targets=np.zeros(length, np.int32),
            loss_mask=np.zeros(length, bool),
            images=tuple(images),
        )

    def _check_range(self, tokens: np.ndarray) -> None:
        # The embedding lookup would clamp an id beyond the vocabulary to its last row.
        size = self.tokenizer.vocab_size
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < size:
            raise ValueError(
                f"input.tokenizer: {type(self.tokenizer).__name__} produces ids from "
                f"{tokens.min()} to {tokens.max()}, but its vocab_size is {size}"
            )

    def _tokenize(self, document: Document) -> tuple[list[int], list[bool], list[Image]]:
        """Returns the whole sequence starting with bos, which tokens are scored, and the images."""
        sequence, scored, images = [self.tokenizer.bos], [False], []
        is_chat = is_conversation(document)
        for segment in self.tiled(document).segments:
            if isinstance(segment, Image):
                if not self.num_image_tokens:
                    raise BadRecord("it has an image, and the model reads none")
                sequence += [self.tokenizer.image_token] * self.num_image_tokens
                scored += [False] * self.num_image_tokens
                images.append(segment)
            else:
                ids = segment_ids(self.tokenizer, segment, is_chat=is_chat)
                sequence += ids
                scored += [not isinstance(segment, Markup) and segment.scored] * len(ids)
        if document.ends:
            sequence.append(self.tokenizer.eos)
            scored.append(scored[-1])
        return sequence, scored, images

    def _check_fits(self, length: int, num_images: int) -> None:
        if length > self.max_sequence_length or num_images > self.max_images:
            raise TooLong(
                f"the conversation takes {length} positions and {num_images} images, and a row has "
                f"{self.max_sequence_length} and {self.max_images}; set the corpus's splitter to a "
                "ConversationSplitter, or raise input.max_sequence_length or input.max_images"
            )

    def _cut(
        self, sequence: list[int], scored: list[bool], images: list[Image]
    ) -> tuple[list[int], list[bool], list[Image]]:
        """Truncates to the limits, ending with text; returns the same objects if all fits."""
        room = self.max_sequence_length + 1
        if len(sequence) <= room and len(images) <= self.max_images:
            return sequence, scored, images
        end = num_images = 0
        kept = (0, 0)
        while True:
            is_image = sequence[end] == self.tokenizer.image_token
            end += self.num_image_tokens if is_image else 1
            num_images += is_image
            if end > room or num_images > self.max_images:
                break
            if not is_image and not _inside_picture(images, num_images):
                kept = (end, num_images)
        if kept[0] == 1:
            # Only images, with no room for text after them. An example has at least one position.
            return [sequence[0], sequence[-1]], [False, False], []
        return sequence[: kept[0]], scored[: kept[0]], images[: kept[1]]


def _inside_picture(images: list[Image], number: int) -> bool:
    """Returns whether the text before an image is a mark between the views of one picture."""
    return number < len(images) and images[number].continues


def is_conversation(document: Document) -> bool:
    """Returns whether a document is made by a chat format."""
    return any(isinstance(segment, Markup | Stop) for segment in document.segments)


def segment_ids(tokenizer: Tokenizer, segment: Text | Markup | Stop, *, is_chat: bool) -> list[int]:
    """Returns the tokens of a segment, which do not depend on the segments around it.

    Args:
        is_chat: Whether the document is a conversation.
    """
    if isinstance(segment, Markup):
        return tokenizer.encode_markup(segment.text)
    if isinstance(segment, Stop):
        return [tokenizer.stop_token(segment.text)]
    return tokenizer.encode_after(segment.text) if is_chat else tokenizer.encode(segment.text)
