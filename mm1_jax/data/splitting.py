"""Long documents -> parts that fit a row, cut between blocks and never inside one.

A block is a picture, or a run of text of bounded length. Joined, the tokens of the blocks of a text
are the tokens of the text: blocks of text end before a single space, which the first word of the
next block has in its token, as words inside of a text do.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mm1_jax.batch import Document, Image, Text
from mm1_jax.config import Configurable, config_class
from mm1_jax.field_types import PositiveInt

# A sentence may end here; a block does, by preference.
_SENTENCE_ENDS = ".!?:;"


class Part(NamedTuple):
    """A run of the blocks of a record: all of them where `end` is None."""

    record: int
    first: int = 0
    end: int | None = None


class Splitter(Configurable):
    """Cuts documents at block boundaries into as few parts as a greedy pass makes."""

    @config_class
    class Config(Configurable.Config):
        # Longest block of text, in characters. Shorter ones fill rows better; a text without
        # spaces is cut where the block is full.
        block_characters: PositiveInt = 1000
        # Longest part, in positions; None: a row.
        max_positions: PositiveInt | None = None
        # Whether a part may end with an image whose text begins the next part.
        may_part_image_from_text: bool = False

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        if cfg.block_characters < 1:
            raise ValueError(f"splitter.block_characters={cfg.block_characters} must be positive.")
        if cfg.max_positions is not None and cfg.max_positions < 2:
            raise ValueError(f"splitter.max_positions={cfg.max_positions} must be at least 2.")
        self.max_positions = cfg.max_positions

    def blocks(self, document: Document) -> Document:
        """The same document, in segments that are blocks."""
        segments: list[Text | Image] = []
        for segment in document.segments:
            if isinstance(segment, Image):
                segments.append(segment)
                continue
            for text in text_blocks(segment.text, self._config.block_characters):
                segments.append(Text(text, segment.scored))
        return Document(tuple(segments), document.ends)

    def parts(
        self, sizes: Sequence[int], is_image: Sequence[bool], *, max_tokens: int, max_images: int
    ) -> list[range]:
        """Runs of blocks that fit into a row and have text, in order.

        Every block of text is in one of them; one that alone is longer than a row is on its own.
        Images are in the part of the text that follows them, but for those that stand before more
        than a row has room for, or for which the page has no text.

        Args:
            sizes: Positions that each block takes.
            max_tokens: Positions that the blocks of a part may take together.
        """

        def fits(run: range) -> bool:
            tokens = sum(sizes[i] for i in run)
            return tokens <= max_tokens and sum(is_image[i] for i in run) <= max_images

        parts: list[range] = []
        part = range(0)
        for unit in self._units(is_image):
            if fits(joined := range(part.start, unit.stop)) and part.stop == unit.start:
                part = joined
                continue
            parts.append(part)
            while len(unit) > 1 and not fits(unit):
                unit = unit[1:]
            part = unit
        return [part for part in (*parts, part) if not all(is_image[i] for i in part)]

    def _units(self, is_image: Sequence[bool]) -> Iterator[range]:
        """What stays together: an image, further images and the text that follows them."""
        first = 0
        for i, image in enumerate(is_image):
            if not image or self._config.may_part_image_from_text:
                yield range(first, i + 1)
                first = i + 1
        if first < len(is_image):
            yield range(first, len(is_image))


def text_blocks(text: str, max_characters: int) -> list[str]:
    """Cuts a text at single spaces, which no block holds; all else is in one of them.

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
    """The last place of text[start : stop + 1] to cut at, after a sentence that ends late in it."""
    found = None
    for i in range(stop, start, -1):
        around = text[i - 1 : i] + text[i + 1 : i + 2]
        if text[i] != " " or len(around) < 2 or any(map(str.isspace, around)):
            continue
        # Blocks that end with early sentences would be short, and many.
        if around[0] in _SENTENCE_ENDS and i - start > (stop - start) // 2:
            return i
        found = i if found is None else found
    return found
