"""Small random corpora, seeded by the record number, with the defects that tests ask for.

Worker processes import this module by name.
"""

import numpy as np

from mm1_jax.batch import Document, Image, Record, Text
from mm1_jax.config import config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.images import Augmentation
from mm1_jax.data.input import Input
from mm1_jax.data.mixture import CorpusWeight, Stream
from mm1_jax.data.pairs import PairInput
from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.sources.base import Source

WORDS = ["a", "red", "circle", "left", "of", "two", "small", "blue", "squares"]


class DrawnSource(Source):
    """Records of one to `max_words` words after up to `max_images` pictures of 8 pixels."""

    @config_class
    class Config(Source.Config):
        num_records: int = 40
        max_words: int = 12
        max_images: int = 2
        # Records whose first picture cannot be decoded, and records that raise BadRecord.
        bad_images: list[int] = []
        bad_records: list[int] = []

    def __init__(self, cfg: Config, *, split: str):
        super().__init__(cfg, split=split)
        self.cfg = cfg

    def __len__(self) -> int:
        return self.cfg.num_records

    def __getitem__(self, index: int) -> Record:
        if index in self.cfg.bad_records:
            raise BadRecord("drawn as bad")
        rng = np.random.default_rng((index, self.split == "test"))
        num_images = int(rng.integers(1, self.cfg.max_images + 1)) if self.cfg.max_images else 0
        pictures = list(rng.integers(0, 256, (num_images, 8, 8, 3), np.uint8))
        if index in self.cfg.bad_images:
            pictures[0] = b"no picture"
        words = rng.choice(WORDS, rng.integers(1, self.cfg.max_words + 1))
        return {"pictures": pictures, "text": " ".join(words)}


class AbsentSource(Source):
    """A source that must not be built."""

    def __init__(self, cfg: Source.Config, *, split: str):
        raise AssertionError("a source of weight 0 was built")

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Record:
        raise NotImplementedError


def to_document(record: Record) -> Document:
    images = tuple(Image(picture) for picture in record["pictures"])
    return Document((*images, Text("about", scored=False), Text(record["text"])))


def to_pair(record: Record) -> Document:
    return Document((Image(record["pictures"][0]), Text(record["text"])))


def corpus(name: str, to_document=to_document, **source) -> Corpus.Config:
    return Corpus.default_config().set(
        name=name,
        source=DrawnSource.default_config().set(**source),
        to_document=to_document,
        augmentation=Augmentation.default_config().set(shift=0.2, contrast=0.3),
    )


def stream(name: str, weight: int, *corpora: Corpus.Config, weights=None) -> Stream.Config:
    weights = [1] * len(corpora) if weights is None else weights
    return Stream.default_config().set(
        name=name,
        weight=weight,
        corpora=[
            CorpusWeight().set(corpus=corpus, weight=weight)
            for corpus, weight in zip(corpora, weights, strict=True)
        ],
    )


def input_config(**fields) -> Input.Config:
    """Eight rows of three streams and four corpora, in process and without prefetch."""
    streams = [
        stream("captions", 9, corpus("pairs", max_images=1), corpus("questions", num_records=7)),
        stream("interleaved", 9, corpus("pages", max_images=4, max_words=30)),
        stream("text", 2, corpus("texts", max_images=0, max_words=40)),
    ]
    return Input.default_config().set(**(dict(
        streams=streams,
        batch_size=8,
        max_sequence_length=96,
        max_images=6,
        num_image_tokens=4,
        image_size=16,
        prefetch=0,
    ) | fields))  # fmt: skip


def pair_config(**fields) -> PairInput.Config:
    """Eight pairs of two streams and three corpora, in process and without prefetch."""
    streams = [
        stream(
            "web",
            2,
            corpus("alt_texts", to_pair),
            corpus("synthetic", to_pair, num_records=7, max_words=30),
            weights=[3, 1],
        ),
        stream("scenes", 1, corpus("scenes", to_pair, num_records=300)),
    ]
    return PairInput.default_config().set(**(dict(
        streams=streams,
        batch_size=8,
        max_sequence_length=16,
        image_size=16,
        prefetch=0,
    ) | fields))  # fmt: skip
