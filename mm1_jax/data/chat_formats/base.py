"""The interface of a chat format: the turns of a conversation -> a document."""

import abc
from collections.abc import Sequence
from typing import Literal, NamedTuple

from mm1_jax.batch import Document, Image
from mm1_jax.config import Configurable


class Turn(NamedTuple):
    """One turn of a conversation: texts and pictures in reading order.

    `is_scored` is false for an answer that is only read, such as one of an exemplar.
    """

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | Image, ...]
    is_scored: bool = True


class ChatFormat(Configurable, abc.ABC):
    """Renders conversations for training, evaluation and chat alike.

    Every segment of the document is tokenized by itself. The document of the first k turns, with
    the prompt of the next answer, is therefore a prefix of the document of all turns.
    """

    @abc.abstractmethod
    def document(self, turns: Sequence[Turn], *, prompts_answer: bool = False) -> Document:
        """Returns the document of some turns.

        Args:
            prompts_answer: Ends the document with the words that precede an answer.

        Raises:
            BadRecord: The format has no place for such turns.
        """

    @abc.abstractmethod
    def jinja(self) -> str:
        """Returns the format as a `chat_template` of transformers, for exported models."""

    @property
    @abc.abstractmethod
    def stop(self) -> str | None:
        """The name of the special token that ends an answer; None is the end-of-sequence token."""
