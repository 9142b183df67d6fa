"""The nouns of the data flow and the shape glossary; everything that data and models share.

    Record -> Document -> Example -> Batch
     source    corpus     tokenise    pack

Shape letters, everywhere in the project:

    B batch rows       T target/query positions    S source/key positions    V vocabulary
    D model dim        F feed-forward dim          N query heads             K kv heads
    G query heads per kv head                      H head dim                L layers
    E experts          C expert capacity           X experts per token (top-k)
    I image slots/row  J images in the batch's buffer                        P patches/image
    M image tokens/image                           Dv vision dim             h w pixels
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8

# A record as it is stored: plain names to bytes, strings, numbers or lists of them.
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Text:
    """A run of text. `scored`: whether its tokens are training targets."""

    text: str
    scored: bool = True


@dataclass(frozen=True)
class Image:
    """A reference to one picture: an encoded file (`bytes`), or pixels `uint8 [h, w, 3]`.

    Pictures that are drawn are a function that draws the pixels: most documents are looked at for
    their length only.
    """

    data: bytes | np.ndarray | Callable[[], np.ndarray]


@dataclass(frozen=True)
class Document:
    """Text and images in reading order; the one type that every corpus is turned into.

    A caption pair is `(Image, Text)`, a text document `(Text,)`, a question
    `(Image, Text(question, scored=False), Text(answer))`, an interleaved page any sequence. `ends`:
    whether it ends here, or is a part of a longer one that goes on.
    """

    segments: tuple[Text | Image, ...]
    ends: bool = True

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(segment for segment in self.segments if isinstance(segment, Image))

    def part(self, first: int, end: int) -> "Document":
        """The segments from `first` on and before `end`."""
        return Document(self.segments[first:end], self.ends and end == len(self.segments))


@dataclass(frozen=True)
class Example:
    """A tokenised document: image positions hold the placeholder id, targets are shifted already.

    `tokens[t]` is the input at position t and `targets[t]` the token to predict there;
    `loss_mask[t]` says whether that prediction is scored. `images` are still encoded.
    """

    tokens: Int[np.ndarray, "t"]
    targets: Int[np.ndarray, "t"]
    loss_mask: Bool[np.ndarray, "t"]
    images: tuple[Image, ...]


@dataclass(frozen=True)
class Batch:
    """Packed rows of fixed shape: the only thing that crosses from the host to the device.

    NumPy arrays on the host, JAX arrays on the device; a pytree (registered in `sharding.py`).
    Masks are derived from `positions` and `segment_ids`, so none is shipped.

    `ImageBuffer` decides where pictures stand. The buffer is cut as the rows are, down to groups of
    rows that share slots, each of which finds its pictures at `image_index` modulo the slots of a
    group. In a buffer with a slot for every place of every row (J = B * I), each row is a group.

    Attributes:
        tokens: Inputs; image positions hold the image token.
        targets: The next token at every position (0 where there is none).
        loss_mask: Which targets count.
        positions: Position inside its document, from 0.
        segment_ids: 1-based document number in the row; 0 is padding.
        corpus_ids: Index of the corpus that a position comes from; -1 is padding.
        images: The buffer of pictures, 0..255; rows point into it.
        image_index: Which picture fills the k-th image slot of a row, counted in the buffer of the
            global batch; -1 is none.
    """

    tokens: Int[Any, "B T"]
    targets: Int[Any, "B T"]
    loss_mask: Bool[Any, "B T"]
    positions: Int[Any, "B T"]
    segment_ids: Int[Any, "B T"]
    corpus_ids: Int[Any, "B T"]
    images: UInt8[Any, "J h w 3"]
    image_index: Int[Any, "B I"]
