"""GQA: questions about scenes, made from graphs of them.

gqa/testdev_balanced_questions.json  gqa/train_balanced_questions.json     an object by id
gqa/images/                                                                <imageId>.jpg
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mm1_jax.config import config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.evals.benchmarks.base import Task, Verdict
from mm1_jax.evals.benchmarks.published import (
    AnnotationSource,
    ImageFile,
    PublishedBenchmark,
    question_corpus,
    question_record,
)
from mm1_jax.evals.metrics.short_answers import gqa_correct


class GqaSource(AnnotationSource):
    """A question a record."""

    @config_class
    class Config(AnnotationSource.Config):
        folder: str = "gqa"
        query_split: str = "testdev_balanced"
        support_split: str = "train_balanced"

    def read(self, split: str) -> list[dict[str, Any]]:
        path = self.file(f"{split}_questions.json", f"questions/{split}_questions.json")
        (folder,) = self.images("images")
        records = []
        # Of an object by id, entries have their key as `id`.
        for entry in self.entries(path):
            name = f"{entry.key('imageId')}.jpg"
            key, question = entry.key("id"), entry.text("question")
            answers = [entry.text("answer")]
            record = question_record(key, [ImageFile(folder, name)], question, answers)
            records.append(dict(record) | {"image": name})
        return records


class Gqa(PublishedBenchmark):
    """`{image} Question: .. Short answer:`, right where the answer is the reference; in percent."""

    @config_class
    class Config(PublishedBenchmark.Config):
        name: str = "gqa"
        corpus: Corpus.Config = question_corpus(GqaSource.default_config(), "gqa")
        stop_strings: tuple[str, ...] = ("\n", ".", ",", "Question")
        answer_joiner: str | None = " "
        exemplar_separator: str | None = "\n"
        max_new_tokens: int = 10
        headline: str = "acc"

    def unit(self, task: Task) -> str:
        """The questions about a picture are not independent."""
        return task.record["image"]

    def is_correct(self, answer: str, reference: str) -> bool:
        return gqa_correct(answer, reference)

    def columns(self, verdicts: Sequence[Verdict]) -> dict[str, np.ndarray]:
        return {"acc": 100 * np.array([bool(verdict.correct) for verdict in verdicts], float)}

    def result(self, verdict: Verdict) -> dict[str, Any]:
        """As the official code has it."""
        return {"questionId": verdict.task.key, "prediction": verdict.answer}
