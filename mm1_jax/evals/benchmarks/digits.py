"""Held-out handwritten digits: which one is it, and the caption of the scan."""

from collections.abc import Mapping, Sequence

import numpy as np

from mm1_jax.config import config_class
from mm1_jax.data.corpora import digits
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.evals.benchmarks.base import Benchmark


class DigitsVQA(Benchmark):
    """`{image} Question: what digit is this? Short answer:`, once for every held-out scan."""

    @config_class
    class Config(Benchmark.Config):
        name: str = "digits_vqa"
        corpus: Corpus.Config = digits.corpus(Kind.QUESTIONS)
        stop_strings: tuple[str, ...] = ("\n", ".", ",", "Question")

    def indices(self, corpus: Corpus) -> Sequence[int]:
        """The first question of each scan that asks for the digit."""
        first: dict[bytes, int] = {}
        for index in range(len(corpus)):
            record = corpus.source[index]
            if record["kind"] == "digit":
                first.setdefault(record["images"][0].tobytes(), index)
        return sorted(first.values())


class DigitsCaption(Benchmark):
    """`{image}`, to be followed by the caption word for word."""

    @config_class
    class Config(Benchmark.Config):
        name: str = "digits_caption"
        corpus: Corpus.Config = digits.corpus(Kind.CAPTIONS)

    def combine(self, means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"exact_match": means["accuracy"]}
