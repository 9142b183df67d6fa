"""Types of the data flow and the shape glossary; the data side and the models share both.

    Record -> Document -> Example -> Batch
     source    corpus     tokenize    pack

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
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8, UInt32

# A stored record: field names to bytes, strings, numbers or lists of them.
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Text:
    """A span of text; its tokens are training targets if it is `scored`."""

    text: str
    scored: bool = True


@dataclass(frozen=True)
class Markup:
    """Unscored text of a chat template, in which the names of special tokens are those tokens.

    In a `Text` they are characters, so that no user can write a control token.
    """

    text: str


@dataclass(frozen=True)
class Stop:
    """The token that ends an answer, a training target unless the answer is only read.

    `text` is the name of a special token, such as `<|im_end|>`; None is the end-of-sequence token.
    """

    text: str | None = None
    scored: bool = True


class View(NamedTuple):
    """A tile of a picture that is resized to a grid of `columns` x `rows` tiles.

    If `pads`, the picture keeps its aspect ratio and is centered on black; otherwise it is
    stretched.
    """

    columns: int
    rows: int
    column: int
    row: int
    pads: bool = False


@dataclass(frozen=True)
class Image:
    """One view of a picture, which the vision encoder reads at once.

    The picture is an encoded file (`bytes`), or pixels `uint8 [h, w, 3]`. A rendered picture is a
    function that returns the pixels, because most documents are read for their length only. If it
    has an attribute `size` (width and height), its views are planned without rendering it.

    Attributes:
        view: The tile to show; None shows the whole picture.
        is_tiled: Whether a tiling may replace the picture by several views of it.
        continues: Whether it is another view of the same picture as the image before it.
    """

    data: bytes | np.ndarray | Callable[[], np.ndarray]
    view: View | None = None
    is_tiled: bool = True
    continues: bool = False


Segment = Text | Markup | Stop | Image


@dataclass(frozen=True)
class Document:
    """Text and images in reading order; every corpus produces this type.

    A caption pair is `(Image, Text)`, a text document `(Text,)`, a question
    `(Image, Text(question, scored=False), Text(answer))`, an interleaved page any sequence. `ends`
    is false for a part of a longer document that continues in another part, and for a conversation,
    whose answers have stops of their own.
    """

    segments: tuple[Segment, ...]
    ends: bool = True

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(segment for segment in self.segments if isinstance(segment, Image))

    def piece(self, first: int, end: int) -> "Document":
        """Returns the document of the segments `first` to `end - 1`."""
        return Document(self.segments[first:end], self.ends and end == len(self.segments))


@dataclass(frozen=True)
class Example:
    """A tokenized document: image positions hold the placeholder id, and targets are shifted.

    `tokens[t]` is the input at position t, `targets[t]` the token to predict there, and
    `loss_mask[t]` is true if that prediction is scored. `images` are still encoded.
    """

    tokens: Int[np.ndarray, "t"]
    targets: Int[np.ndarray, "t"]
    loss_mask: Bool[np.ndarray, "t"]
    images: tuple[Image, ...]


@dataclass(frozen=True)
class Batch:
    """Packed rows of fixed shape: the only data that is copied from the host to the device.

    The arrays are NumPy on the host and JAX on the device; `sharding.py` registers the pytree.
    Attention masks are derived from `positions` and `segment_ids` on the device.

    `ImageBuffer` assigns the slots of the image buffer. The buffer is sharded as the rows are, down
    to groups of rows that share slots; a group finds its pictures at `image_index` modulo the slots
    of a group. In a buffer with one slot per image place of each row (J = B * I), each row is a
    group.

    Attributes:
        tokens: Inputs; image positions hold the image token.
        targets: The next token at every position (0 where there is none).
        loss_mask: True for targets that count in the loss.
        positions: Position inside the document, from 0.
        segment_ids: 1-based document number in the row; 0 is padding.
        corpus_ids: Index of the corpus of each position; -1 is padding.
        images: Image buffer, 0..255; rows point into it.
        image_index: Slot in the image buffer of the global batch of each row's k-th image; -1 is
            none.
    """

    tokens: Int[Any, "B T"]
    targets: Int[Any, "B T"]
    loss_mask: Bool[Any, "B T"]
    positions: Int[Any, "B T"]
    segment_ids: Int[Any, "B T"]
    corpus_ids: Int[Any, "B T"]
    images: UInt8[Any, "J h w 3"]
    image_index: Int[Any, "B I"]


@dataclass(frozen=True)
class ImageTextBatch:
    """Pictures with a text each, for training vision encoders; nothing is packed.

    Attributes:
        images: One picture per row, 0..255.
        tokens: The text with its bos and eos, padded with 0; eos is kept if the text is cut. T may
            be 0, for training on pictures alone.
        lengths: Number of tokens of each text.
        row_seeds: Random numbers drawn per seed, epoch and record, from which the device derives
            what differs between epochs, such as the length of a prefix.
        corpus_ids: Index of the corpus of each row; -1 is a row without a record, which counts
            nowhere.
    """

    images: UInt8[Any, "B h w 3"]
    tokens: Int[Any, "B T"]
    lengths: Int[Any, "B"]
    row_seeds: UInt32[Any, "B"]
    corpus_ids: Int[Any, "B"]
