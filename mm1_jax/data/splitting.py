"""Long documents -> pieces that fit in a row, cut between blocks and never inside one.

A block is an image, or a run of text of bounded length. Concatenated, the tokens of a text's blocks
are the tokens of the text: it is cut at single spaces, and the token of the next block's first word
includes the space, as it does inside a text.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mm1_jax.batch import Document, Image, Segment, Text
from mm1_jax.config import Configurable, config_class
from mm1_jax.field_types import PositiveInt

# Characters that end a sentence; blocks preferably end there.
_SENTENCE_ENDS = ".!?:;"


class DocumentPiece(NamedTuple):
    """A run of the blocks of a record; all of them if `end` is None."""

    record: int
    first: int = 0
    end: int | None = None


class Splitter(Configurable):
    """Splits documents greedily at block boundaries into pieces that fit in a row."""

    @config_class
    class Config(Configurable.Config):
        # Longest block of text, in characters. Shorter blocks fill rows better; text without
        # spaces is cut where the block is full.
        block_characters: PositiveInt = 1000
        # Longest piece, in positions; None means a row.
        max_positions: PositiveInt | None = None
        # If True, a piece may end with an image whose text begins the next piece.
        may_part_image_from_text: bool = False

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        if cfg.block_characters < 1:
            raise ValueError(f"splitter.block_characters={cfg.block_characters} must be positive.")
        if cfg.max_positions is not None and cfg.max_positions < 2:
            raise ValueError(f"splitter.max_positions={cfg.max_positions} must be at least 2.")
        self.max_positions = cfg.max_positions

    def blocks(self, document: Document) -> Document:
        """Returns the document with its text cut into blocks."""
        segments: list[Segment] = []
        for segment in document.segments:
            if isinstance(segment, Image):
                segments.append(segment)
                continue
            if not isinstance(segment, Text):
                raise ValueError(
                    "splitter: a Splitter cuts texts anywhere, also inside an answer; give a "
                    "corpus of conversations a ConversationSplitter"
                )
            for text in text_blocks(segment.text, self._config.block_characters):
                segments.append(Text(text, segment.scored))
        return Document(tuple(segments), document.ends)

    def pieces(
        self, sizes: Sequence[int], num_images: Sequence[int], *, max_tokens: int, max_images: int
    ) -> list[range]:
        """Returns runs of blocks, in order, that fit in a row and contain text.

        Every block of text is in one of them; a block longer than a row is a piece of its own.
        Images are in the same piece as the text that follows them, unless
        `may_part_image_from_text` is set. If a row has no room for all of them, the first ones are
        dropped. Images after the last text are dropped unless the last piece has room for them.

        Args:
            sizes: Number of positions of each block.
            num_images: Number of views of each image, and 0 for text.
            max_tokens: Most positions that the blocks of a piece may take together.
        """

        def fits(run: range) -> bool:
            tokens = sum(sizes[i] for i in run)
            return tokens <= max_tokens and sum(num_images[i] for i in run) <= max_images

        pieces: list[range] = []
        piece = range(0)
        for unit in self._units(num_images):
            if fits(joined := range(piece.start, unit.stop)) and piece.stop == unit.start:
                piece = joined
                continue
            pieces.append(piece)
            while len(unit) > 1 and not fits(unit):
                unit = unit[1:]
            piece = unit
        return [piece for piece in (*pieces, piece) if not all(num_images[i] for i in piece)]

    def _units(self, num_images: Sequence[int]) -> Iterator[range]:
        """Yields runs of blocks that stay together: images and the text that follows them."""
        first = 0
        for i, number in enumerate(num_images):
            if not number or self._config.may_part_image_from_text:
                yield range(first, i + 1)
                first = i + 1
        if first < len(num_images):
            yield range(first, len(num_images))


def text_blocks(text: str, max_characters: int) -> list[str]:
    """Cuts a text at single spaces, which are dropped; the blocks hold everything else.

    >>> text_blocks("One two. Three four", 12)
    ['One two.', 'Three four']
    """
    blocks, start = [], 0
    while len(text) - start > max_characters:
        cut = _last_space(text, start, start + max_characters)
        if cut is None:
            blocks.append(text[start : start + max_characters])
            start += max_characters
        else:
            blocks.append(text[start:cut])
            start = cut + 1
    return [*blocks, text[start:]]


def _last_space(text: str, start: int, stop: int) -> int | None:
    """Returns the last place to cut text[start : stop + 1], preferably after a late sentence."""
    found = None
    for i in range(stop, start, -1):
        around = text[i - 1 : i] + text[i + 1 : i + 2]
        if text[i] != " " or len(around) < 2 or any(map(str.isspace, around)):
            continue
        # Cutting after early sentences would make many short blocks.
        if around[0] in _SENTENCE_ENDS and i - start > (stop - start) // 2:
            return i
        found = i if found is None else found
    return found
