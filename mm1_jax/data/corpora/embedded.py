"""What the embedded corpora, digits and scenes, have in common: four kinds of records each."""

import enum
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from mm1_jax.batch import Document, Record
from mm1_jax.data.corpora.captions import caption_document
from mm1_jax.data.corpora.interleaved import interleaved_document
from mm1_jax.data.corpora.questions import question_document
from mm1_jax.data.corpora.text import text_document


class Kind(enum.Enum):
    """What the records of an embedded corpus are."""

    CAPTIONS = "captions"
    QUESTIONS = "questions"
    INTERLEAVED = "interleaved"
    TEXT = "text"


TO_DOCUMENT: dict[Kind, Callable[[Record], Document]] = {
    Kind.CAPTIONS: caption_document,
    Kind.QUESTIONS: question_document,
    Kind.INTERLEAVED: interleaved_document,
    Kind.TEXT: text_document,
}

NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
)  # fmt: skip
ORDINALS = ("first", "second", "third", "fourth", "fifth")


def num_drawn(num_records: int, split: str) -> int:
    """How many records are drawn: the test split has a quarter of the training split's."""
    return num_records if split == "train" else -(-num_records // 4)


# A page before it is a record: its texts and pictures in reading order.
Page = list[str | np.ndarray | Callable[[], np.ndarray]]


def page_record(page: Page) -> Record:
    """The page as the parallel lists that `interleaved_document` reads."""
    return {
        "texts": [part if isinstance(part, str) else None for part in page],
        "images": [None if isinstance(part, str) else part for part in page],
    }


def text_record(sentences: Iterable[str]) -> Record:
    """The sentences, each of them once."""
    return {"text": " ".join(dict.fromkeys(sentences))}


def enumeration(items: Sequence[object]) -> str:
    """`a, b and c`."""
    return ", ".join(map(str, items[:-1])) + f" and {items[-1]}"
