"""Code shared by the embedded corpora, digits and scenes: each has four kinds of records."""

import abc
import enum
import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from mm1_jax.batch import Document, Record
from mm1_jax.config import config_class
from mm1_jax.data.corpora.captions import caption_document
from mm1_jax.data.corpora.interleaved import interleaved_document
from mm1_jax.data.corpora.questions import question_document
from mm1_jax.data.corpora.text import text_document
from mm1_jax.data.sources.base import Source
from mm1_jax.field_types import PositiveInt, Seed
from mm1_jax.storage import user_cache

_DATA = Path(__file__).parents[1]


class Kind(enum.Enum):
    """The kind of the records of an embedded corpus.

    Fingerprints in saved states contain the name of this class, so renaming it ends their runs.
    """

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


class DrawnSource(Source):
    """Records that code draws. What is derived from them is cached for this version of the code.

    The test split has a quarter as many records as the training split.
    """

    @config_class
    class Config(Source.Config):
        num_records: PositiveInt = 8192  # In the training split.
        seed: Seed = 0

    def __len__(self) -> int:
        num_records = self._config.num_records
        return num_records if self.split == "train" else -(-num_records // 4)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.drawn(index)

    @abc.abstractmethod
    def drawn(self, index: int) -> Record:
        """Returns a record of the split, a pure function of its index."""

    @property
    def cache_dir(self) -> Path:  # type: ignore[override]
        return user_cache()

    @property
    def code_digest(self) -> str:  # type: ignore[override]
        return _code_digest()


@functools.cache
def _code_digest() -> str:
    digest = hashlib.blake2b(digest_size=12)
    for file in sorted(_DATA.rglob("*.py")):
        digest.update(file.relative_to(_DATA).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


# The texts and images of a page in reading order, before it becomes a record.
PageContent = list[str | np.ndarray | Callable[[], np.ndarray]]


def page_record(page: PageContent) -> Record:
    """Returns the page as the parallel lists that `interleaved_document` reads."""
    return {
        "texts": [part if isinstance(part, str) else None for part in page],
        "images": [None if isinstance(part, str) else part for part in page],
    }


def text_record(sentences: Iterable[str]) -> Record:
    """Returns a text record of the sentences, without repetitions."""
    return {"text": " ".join(dict.fromkeys(sentences))}


def enumeration(items: Sequence[object]) -> str:
    """Joins items as in `a, b and c`."""
    return ", ".join(map(str, items[:-1])) + f" and {items[-1]}"
