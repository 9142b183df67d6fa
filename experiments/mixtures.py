"""Corpora and weights of each training stage; integers, so that 45/45/10 is 9:9:2 exactly."""

from mm1_jax.data.corpora import digits, scenes
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.data.mixture import CorpusWeight, Stream


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


def _stream(name: str, weight: int, *corpora: tuple) -> Stream.Config:
    entries = [CorpusWeight().set(corpus=corpus, weight=share) for corpus, share in corpora]
    return Stream.default_config().set(name=name, weight=weight, corpora=entries)
