"""The interface of a chat format: the turns of a conversation -> a document."""

import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from mm1_jax.batch import Document, Image, Segment
from mm1_jax.config import Configurable, config_class
from mm1_jax.data.record_files import IMAGE


class Turn(NamedTuple):
    """One turn of a conversation: texts and pictures in reading order.

    `is_scored` is false for an answer that is only read, such as one of an exemplar.
    """

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | Image, ...]
    is_scored: bool = True


@dataclass(frozen=True)
class Conversation(Document):
    """A document with the turns that it renders, so that turns can be added or left out.

    Attributes:
        chat_format: The format that made the document.
    """

    turns: tuple[Turn, ...] = ()
    chat_format: "ChatFormat | None" = field(default=None, compare=False, repr=False)

    def of(self, turns: Sequence[Turn], *, prompts_answer: bool = False) -> "Conversation":
        """Returns the document of other turns in the same format."""
        assert self.chat_format is not None, "made by a chat format"
        return self.chat_format.document(turns, prompts_answer=prompts_answer)


class ChatFormat(Configurable, abc.ABC):
    """Renders conversations for training, evaluation and chat alike.

    Every segment of the document is tokenized by itself. The document of the first k turns, with
    the prompt of the next answer, is therefore a prefix of the document of all turns.
    """

    @config_class
    class Config(Configurable.Config):
        pass

    def document(self, turns: Sequence[Turn], *, prompts_answer: bool = False) -> Conversation:
        """Returns the document of some turns.

        Args:
            prompts_answer: Ends the document with the words that precede an answer.

        Raises:
            BadRecord: The format has no place for such turns.
        """
        turns = tuple(turn._replace(parts=joined(turn.parts)) for turn in turns)
        segments = tuple(self.segments(turns, prompts_answer=prompts_answer))
        return Conversation(segments, ends=False, turns=turns, chat_format=self)

    @abc.abstractmethod
    def segments(self, turns: Sequence[Turn], *, prompts_answer: bool) -> Iterator[Segment]:
        """Yields the segments of `document`; no turn has two texts in a row or a blank one."""

    @abc.abstractmethod
    def jinja(self) -> str:
        """Returns the format as a `chat_template` of transformers, for exported models."""

    @property
    @abc.abstractmethod
    def stop(self) -> str | None:
        """The name of the special token that ends an answer; None is the end-of-sequence token."""

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The names of the special tokens that the format writes."""
        return () if self.stop is None else (self.stop,)

    def fingerprint(self) -> str:
        """Describes everything that determines the documents."""
        return self.config.debug_string(kv_separator="=", field_separator=" ")


def reading_order(text: str, images: Iterator[Image]) -> list[str | Image]:
    """Puts the next image in place of each `<image>` of a text, and strips the texts beside it."""
    first, *others = text.split(IMAGE)
    parts: list[str | Image] = [first.strip()]
    for other in others:
        parts += [next(images), other.strip()]
    return parts


def joined(parts: Sequence[str | Image]) -> tuple[str | Image, ...]:
    """Joins texts that stand side by side, and drops empty ones.

    >>> joined(("Is ", "it red?"))
    ('Is it red?',)
    """
    found: list[str | Image] = []
    for part in parts:
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] += part
        elif part != "":
            found.append(part)
    return tuple(found)
