"""Held-out handwritten digits: which one is it, and the caption of the scan."""

from collections.abc import Sequence

from mm1_jax.config import config_class
from mm1_jax.data.corpora import digits
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.evals.benchmarks.base import Benchmark, Verdict
from mm1_jax.evals.metrics.answers import mean


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

    def score(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        return {"accuracy": mean([verdict.correct for verdict in verdicts])}


class DigitsCaption(Benchmark):
    """`{image}`, to be followed by the caption word for word."""

    @config_class
    class Config(Benchmark.Config):
        name: str = "digits_caption"
        corpus: Corpus.Config = digits.corpus(Kind.CAPTIONS)

    def score(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        return {"exact_match": mean([verdict.correct for verdict in verdicts])}
