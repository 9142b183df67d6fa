"""WebQuestions: short questions that people put to a search engine.

    webqs/data/test-*.parquet     as on the hub of Hugging Face (stanfordnlp/web_questions)

Columns: question, answers (a list of texts, all of them right).

Nothing is generated: a task is right where one of its answers is what the model would say, token by
token (`exact_match` of the harness's webqs).
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


class WebQsSource(TextSource):
    """A question a record, its options the answers, an exemplar's answer the first of these.

    As in the harness, they are in the order of the alphabet.
    """

    @config_class
    class Config(TextSource.Config):
        folder: str = "webqs"
        query_split: str = "test"
        support_split: str = "train"

    def patterns(self, split: str) -> Sequence[str]:
        return (f"data/{split}-*.parquet", f"{split}.jsonl")

    def record(self, entry: Entry, number: str) -> dict[str, Any]:
        answers = [text for text in entry.texts("answers") if text.strip()]
        if not answers:
            raise entry.error(("answers",), "an answer or more", entry.values.get("answers"))
        prompt = f"Question: {some_text(entry, 'question')}\nAnswer:"
        options = without_longer(answers)
        return option_record(number, prompt, options, 0, answers=answers)


def without_longer(texts: Sequence[str]) -> list[str]:
    """In order of the alphabet, without those that begin with another: that one decides already."""
    kept: list[str] = []
    for text in sorted(texts):
        if not kept or not text.startswith(kept[-1]):
            kept.append(text)
    return kept


class WebQs(LikelihoodBenchmark):
    """`Question: ..\\nAnswer:`; in percent, where one of the answers is greedy."""

    @config_class
    class Config(LikelihoodBenchmark.Config):
        name: str = "webqs"
        corpus: Corpus.Config = text_corpus(WebQsSource.default_config(), "webqs")
        headline: str = "exact_match"

    def is_right(self, task: Task, likelihoods: Sequence[Likelihood]) -> bool | None:
        return any(one.is_greedy for one in likelihoods)

    def choose(self, task: Task, likelihoods: Sequence[Likelihood]) -> str:
        """The greedy answer; where none is, what the model would say instead is not known."""
        pairs = zip(task.record["options"], likelihoods, strict=True)
        return next((option for option, one in pairs if one.is_greedy), "")

    def quality(self, verdicts: Sequence[Verdict]) -> np.ndarray:
        """The log-probability of the answer that is most likely, in nats."""
        return np.array(
            [max(one.log_probability for one in self.likelihoods(x)) for x in verdicts], float
        )

    def columns(self, verdicts: Sequence[Verdict]) -> dict[str, np.ndarray]:
        right = [any(one.is_greedy for one in self.likelihoods(verdict)) for verdict in verdicts]
        return {"exact_match": 100 * np.array(right, float)}
