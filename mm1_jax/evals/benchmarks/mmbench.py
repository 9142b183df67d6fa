"""MMBench: questions with options, asked once for each option, which go round.

    mmbench/mmbench_dev_20230712.tsv     index, question, hint, A .. D, answer, image (base64)

The rounds of a question have indices that differ by millions.
"""

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import numpy as np

from mm1_jax.config import config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.images import BadImage
from mm1_jax.evals.benchmarks.base import Task, Verdict
from mm1_jax.evals.benchmarks.chat import (
    BY_LETTER,
    ChatBenchmark,
    chat_corpus,
    option_of,
    with_options,
)
from mm1_jax.evals.benchmarks.published import AnnotationSource, question_record
from mm1_jax.evals.metrics.multiple_choice import MMBENCH_ROUND, NOTHING, option_letter
from mm1_jax.evals.predictions.choices import lettered_options


class EncodedImage:
    """A picture as base64, decoded when it is looked at."""

    def __init__(self, text: str):
        self._text = text

    def __call__(self) -> bytes:
        try:
            return base64.b64decode(self._text, validate=True)
        except binascii.Error as error:
            raise BadImage(f"not base64: {error}") from error


class MmBenchSource(AnnotationSource):
    """A round of a question a record."""

    @config_class
    class Config(AnnotationSource.Config):
        folder: str = "mmbench"
        query_split: str = "dev_20230712"
        support_split: str = "dev_20230712"

    def read(self, split: str) -> list[dict[str, Any]]:
        path = self.file(f"mmbench_{split}.tsv", f"MMBench_{split.upper()}.tsv")
        records = []
        images: dict[str, str] = {}
        for entry in self.entries(path):
            options = lettered_options(entry) or {}
            if len(options) < 2:
                raise ValueError(f"{entry.where}: has {len(options)} options, expected 2 or more")
            index, image = entry.integer("index"), entry.text("image")
            # Later files have the index of another round in the place of the same picture.
            image = images.get(image, image)
            images[str(index)] = image
            answers = []
            if entry.has("answer") and entry.text("answer") not in NOTHING:
                answers = [entry.text("answer")]
                if answers[0] not in options:
                    raise entry.error(("answer",), f"one of {', '.join(options)}", answers[0])
            hint = entry.text("hint") if entry.has("hint") else ""
            question = with_options(
                entry.text("question"), options, "" if hint in NOTHING else hint
            )
            record = question_record(str(index), (), question, answers, options=options)
            records.append(dict(record) | {"images": [EncodedImage(image)]})
        return records


class MmBench(ChatBenchmark):
    """Percentages: right in every round of its options; in the first round."""

    @config_class
    class Config(ChatBenchmark.Config):
        name: str = "mmbench"
        corpus: Corpus.Config = chat_corpus(MmBenchSource.default_config(), "mmbench", BY_LETTER)
        headline: str = "circular_acc"

    def unit(self, task: Task) -> str:
        """All rounds of a question."""
        return str(int(task.key) % MMBENCH_ROUND)

    def judge(self, task: Task, answer: str) -> bool | None:
        answers = task.record["answers"]
        return option_letter(answer, option_of(task)) == answers[0] if answers else None

    def columns(self, verdicts: Sequence[Verdict]) -> dict[str, np.ndarray]:
        in_all: dict[str, bool] = {}
        for verdict in verdicts:
            unit = self.unit(verdict.task)
            in_all[unit] = in_all.get(unit, True) and bool(verdict.correct)
        first = np.array([int(verdict.task.key) < MMBENCH_ROUND for verdict in verdicts])
        correct = np.array([bool(verdict.correct) for verdict in verdicts], float)
        circular = np.array([in_all[self.unit(verdict.task)] for verdict in verdicts], float)
        return {
            "circular_acc": np.where(first, 100 * circular, np.nan),
            "vanilla_acc": np.where(first, 100 * correct, np.nan),
        }

    def result(self, verdict: Verdict) -> dict[str, Any]:
        record = verdict.task.record
        answer = record["answers"][0] if record["answers"] else ""
        return {
            "index": int(verdict.task.key),
            "options": record["options"],
            "answer": answer,
            "prediction": verdict.answer,
        }
