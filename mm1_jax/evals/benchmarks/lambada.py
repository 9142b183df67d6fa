"""LAMBADA: the last word of a passage, which only all of it tells.

    lambada/data/lambada_test_en.jsonl            as on the hub of Hugging Face
                                                  (EleutherAI/lambada_openai), or lambada_test.jsonl
    lambada/plain_text/test-*.parquet             or the original tokenised text (cimec/lambada)

Column: text. The former is OpenAI's version, which the harness calls lambada_openai and most
published figures are of.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mm1_jax.config import config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.evals.benchmarks.base import Task, Verdict
from mm1_jax.evals.benchmarks.likelihood import (
    LikelihoodBenchmark,
    TextSource,
    option_record,
    some_text,
    text_corpus,
)
from mm1_jax.evals.benchmarks.published import Entry
from mm1_jax.evals.likelihood import Likelihood


class LambadaSource(TextSource):
    """A passage a record; its one option is the last word."""

    @config_class
    class Config(TextSource.Config):
        folder: str = "lambada"
        query_split: str = "test"
        support_split: str = "test"

    def patterns(self, split: str) -> Sequence[str]:
        return (
            f"data/lambada_{split}_en.jsonl",
            f"lambada_{split}_en.jsonl",
            f"**/lambada_{split}.jsonl",
            f"default/{split}-*.parquet",
            f"data/{split}-*.parquet",
            f"plain_text/{split}-*.parquet",
        )

    def record(self, entry: Entry, number: str) -> dict[str, Any]:
        text = some_text(entry, "text")
        # A single space separates, as in the harness: text with others is used as it is.
        prompt, _, word = text.rpartition(" ")
        if not prompt.strip() or not word.strip():
            raise entry.error(("text",), "a passage that ends with a word after a space", text)
        return option_record(number, prompt, [word], 0)


class Lambada(LikelihoodBenchmark):
    """`acc`, in percent: the word's tokens are greedy; `perplexity`, of the words."""

    @config_class
    class Config(LikelihoodBenchmark.Config):
        name: str = "lambada"
        corpus: Corpus.Config = text_corpus(LambadaSource.default_config(), "lambada")
        exemplar_split: str = "test"

    def is_right(self, task: Task, likelihoods: Sequence[Likelihood]) -> bool | None:
        return likelihoods[0].is_greedy

    def choose(self, task: Task, likelihoods: Sequence[Likelihood]) -> str:
        """The word, where it is greedy; what the model would say instead is not known."""
        return task.record["answer"] if likelihoods[0].is_greedy else ""

    def columns(self, verdicts: Sequence[Verdict]) -> dict[str, np.ndarray]:
        words = [self.likelihoods(verdict)[0] for verdict in verdicts]
        return {
            "acc": 100 * np.array([word.is_greedy for word in words], float),
            "perplexity": np.array([word.log_probability for word in words]),
        }

    def combine(self, means: Any) -> dict[str, np.ndarray]:
        # Of a model that never saw a text, it may be beyond all numbers.
        with np.errstate(over="ignore"):
            return {**means, "perplexity": np.exp(-means["perplexity"])}
