"""Long documents -> pieces that fit in a row, cut between blocks and never inside one.

A block is an image, or a run of text of bounded length. Concatenated, the tokens of a text's blocks
are the tokens of the text: it is cut at single spaces, and the token of the next block's first word
includes the space, as it does inside a text.

A conversation is cut between its rounds, which end with an answer, and never inside a round.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from mm1_jax.batch import Document, Image, Segment, Text
from mm1_jax.config import Configurable, config_class
from mm1_jax.data.chat_formats.base import Conversation, Turn
from mm1_jax.data.record_files import BadRecord
from mm1_jax.field_types import PositiveInt

# Characters that end a sentence; blocks preferably end there.
_SENTENCE_ENDS = ".!?:;"


class DocumentPiece(NamedTuple):
    """A run of the blocks of a record, or of its rounds; all of them if `end` is None."""

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

    def piece(self, document: Document, piece: DocumentPiece) -> Document:
        """Returns the document of a piece."""
        assert piece.end is not None, "not the whole document"
        blocks = self.blocks(document)
        if piece.end > len(blocks.segments):
            raise BadRecord(f"{len(blocks.segments)} blocks, expected {piece.end} or more")
        return blocks.piece(piece.first, piece.end)

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


class TooLong(BadRecord):
    """A conversation that does not fit in a row."""


class ConversationPieces(NamedTuple):
    """Runs of the rounds of a conversation, and the number of rounds that are in none of them."""

    pieces: list[range]
    num_lost: int


class ConversationSplitter(Configurable):
    """Refuses, cuts or splits conversations that are longer than a row.

    A round is an answer and the turns before it. Each piece begins with the head: the system turn
    and the pictures of the first question. No piece is cut inside a round, misses a picture that
    an earlier round shows, or has no scored answer.
    """

    @config_class
    class Config(Configurable.Config):
        # "refuse" skips the conversation, "cut" keeps the first rounds that fit, and "split" makes
        # several pieces, whose answers do not see the rounds of earlier pieces.
        too_long: Literal["refuse", "cut", "split"] = "split"
        # Longest piece, in positions; None means a row.
        max_positions: PositiveInt | None = None

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        self.max_positions = cfg.max_positions

    def piece(self, document: Document, piece: DocumentPiece) -> Document:
        """Returns the document of a piece."""
        assert piece.end is not None, "not the whole document"
        conversation = _conversation(document)
        head, rounds = _rounds(conversation.turns)
        if piece.end > len(rounds):
            raise BadRecord(f"{len(rounds)} rounds, expected {piece.end} or more")
        turns = [turn for each in rounds[piece.first : piece.end] for turn in each]
        if piece.first:
            shown = tuple(part for part in rounds[0][0].parts if isinstance(part, Image))
            turns[0] = turns[0]._replace(parts=(*shown, *turns[0].parts))
        return conversation.of([*head, *turns])

    def pieces(self, document: Document, fits: Callable[[Document], bool]) -> ConversationPieces:
        """Returns the pieces of a conversation that is longer than a row.

        Raises:
            TooLong: There are none.
        """
        if self._config.too_long == "refuse":
            raise TooLong("splitter.too_long='refuse'")
        _, rounds = _rounds(_conversation(document).turns)
        # No piece begins after pictures that it would not repeat.
        last = next((i for i in range(len(rounds)) if _adds_images(rounds, i)), len(rounds) - 1)
        pieces: list[range] = []
        first = 0
        while first <= last:
            end = first
            while end < len(rounds) and fits(
                self.piece(document, DocumentPiece(0, first, end + 1))
            ):
                end += 1
            if any(
                turn.role == "assistant" and turn.is_scored for turn in sum(rounds[first:end], [])
            ):
                pieces.append(range(first, end))
            if self._config.too_long == "cut":
                break
            first = max(end, first + 1)
        if not pieces:
            raise TooLong("no scored answer fits in a row with the pictures before it")
        return ConversationPieces(pieces, len(rounds) - sum(map(len, pieces)))


def _adds_images(rounds: Sequence[Sequence[Turn]], number: int) -> bool:
    """Returns whether a round shows a picture that is not in the head of the conversation."""
    turns = rounds[number] if number else rounds[0][1:]
    return any(isinstance(part, Image) for turn in turns for part in turn.parts)


def _conversation(document: Document) -> Conversation:
    if not isinstance(document, Conversation):
        raise ValueError(
            "splitter: a ConversationSplitter splits documents of a chat format; set to_document "
            "to a ConversationDocument, or use a Splitter"
        )
    return document


def _rounds(turns: Sequence[Turn]) -> tuple[list[Turn], list[list[Turn]]]:
    """Returns the system turn, if any, and the rounds; turns after the last answer are left out."""
    head = [turn for turn in turns[:1] if turn.role == "system"]
    rounds: list[list[Turn]] = [[]]
    for turn in turns[len(head) :]:
        rounds[-1].append(turn)
        if turn.role == "assistant":
            rounds.append([])
    return head, rounds[:-1]


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
