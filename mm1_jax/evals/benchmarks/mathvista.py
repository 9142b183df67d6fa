"""MathVista: mathematics in pictures.

mathvista/testmini.json          by pid: question, image, choices, unit, precision, answer, ..
mathvista/images/                1.jpg
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mm1_jax.config import config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.evals.benchmarks.base import Task, Verdict
from mm1_jax.evals.benchmarks.chat import (
    BY_LETTER,
    IN_FEW_WORDS,
    ChatBenchmark,
    by_letter,
    chat_corpus,
    with_options,
)
from mm1_jax.evals.benchmarks.published import (
    AnnotationSource,
    Entry,
    ImageFile,
    question_record,
)
from mm1_jax.evals.metrics import mathvista


class MathVistaSource(AnnotationSource):
    """A question a record, with choices or a type of number."""

    @config_class
    class Config(AnnotationSource.Config):
        folder: str = "mathvista"
        query_split: str = "testmini"
        support_split: str = "testmini"

    def read(self, split: str) -> list[dict[str, Any]]:
        path = self.file(f"{split}.json", f"data/{split}.json")
        return [self._record(entry, split) for entry in self.entries(path)]

    def _record(self, entry: Entry, split: str) -> dict[str, Any]:
        choices = entry.texts("choices") if entry.values.get("choices") else []
        question = entry.text("question")
        if entry.has("unit") and entry.text("unit"):
            question = f"{question} (Unit: {entry.text('unit')})"
        instruction = BY_LETTER if choices else IN_FEW_WORDS
        question = f"{with_options(question, by_letter(choices))}\n{instruction}"
        # "images/1.jpg", from the folder of the benchmark on.
        (folder,) = self.images("")
        # The large test split has no answers.
        answers = [entry.text("answer")] if split == "testmini" else []
        precision = entry.values.get("precision")
        if precision not in (None, "") and not isinstance(precision, int | float):
            raise entry.error(("precision",), "a number of decimals", precision)
        record = question_record(
            entry.key("pid", "id"),
            [ImageFile(folder, entry.text("image"))],
            question,
            answers,
            choices=choices,
            answer_type=entry.text("answer_type"),
            precision=None if precision in (None, "") else int(precision),
        )
        return dict(record)


class MathVista(ChatBenchmark):
    """Accuracy in percent; rules extract answers, where the official scores take a model."""

    @config_class
    class Config(ChatBenchmark.Config):
        name: str = "mathvista"
        # The instruction depends on the kind of question, and is part of it.
        corpus: Corpus.Config = chat_corpus(MathVistaSource.default_config(), "mathvista", "")
        headline: str = "accuracy"

    def judge(self, task: Task, answer: str) -> bool | None:
        record = task.record
        if not record["answers"]:
            return None
        choices, kind = record["choices"] or None, record["answer_type"]
        extraction = answer.strip(" ().") if choices and len(answer.strip(" ().")) == 1 else ""
        extraction = extraction or mathvista.extracted_by_rule(answer, choices, kind)
        normalised = mathvista.normalised_answer(
            extraction, choices=choices, answer_type=kind, precision=record["precision"]
        )
        return normalised == record["answers"][0]

    def columns(self, verdicts: Sequence[Verdict]) -> dict[str, np.ndarray]:
        return {"accuracy": 100 * np.array([bool(verdict.correct) for verdict in verdicts], float)}
