"""Corpora and weights of each training stage; integers, so that 45/45/10 is 9:9:2 exactly."""

from typing import Any

from mm1_jax.data.corpora import digits, scenes
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.captions import caption_document
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.data.corpora.interleaved import interleaved_document
from mm1_jax.data.corpora.text import text_document
from mm1_jax.data.mixture import CorpusWeight, Stream
from mm1_jax.data.sources import JsonlSource


def embedded() -> list[Stream.Config]:
    """Scans of digits and rendered scenes, nothing to download, in MM1's proportions of rows.

    Questions stand beside the captions, so that the small models answer questions zero-shot.
    """
    return [
        _stream(
            "captions",
            9,
            (digits.corpus(Kind.CAPTIONS), 1),
            (digits.corpus(Kind.QUESTIONS), 2),
            (scenes.corpus(Kind.CAPTIONS), 1),
            (scenes.corpus(Kind.QUESTIONS), 4),
        ),
        _stream(
            "interleaved",
            9,
            (digits.corpus(Kind.INTERLEAVED), 1),
            (scenes.corpus(Kind.INTERLEAVED), 1),
        ),
        _stream("text", 2, (digits.corpus(Kind.TEXT), 1), (scenes.corpus(Kind.TEXT), 1)),
    ]


def pretraining() -> list[Stream.Config]:
    """MM1's proportions of rows (section 3.2) over one corpus a stream, read from `./data`."""
    return [
        _stream("captions", 9, (_jsonl("captions", caption_document), 1)),
        _stream("interleaved", 9, (_jsonl("interleaved", interleaved_document), 1)),
        _stream("text", 2, (_jsonl("text", text_document), 1)),
    ]


def text() -> list[Stream.Config]:
    """One corpus of text, read from `./data`."""
    return [_stream("text", 1, (_jsonl("text", text_document), 1))]


def _jsonl(name: str, to_document: Any) -> Corpus.Config:
    source = JsonlSource.default_config().set(path=f"data/{name}.jsonl")
    return Corpus.default_config().set(name=name, source=source, to_document=to_document)


def _stream(name: str, weight: int, *corpora: tuple) -> Stream.Config:
    entries = [CorpusWeight().set(corpus=corpus, weight=share) for corpus, share in corpora]
    return Stream.default_config().set(name=name, weight=weight, corpora=entries)
