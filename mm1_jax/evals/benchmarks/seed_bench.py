"""SEED-Bench: questions with four options, about pictures and videos.

    seed/SEED-Bench.json             `questions`: question_id, question_type_id, choice_a .. d
    seed/SEED-Bench-image/           named by `data_id`

Questions about videos (types 10 to 12) are not asked; the metric `videos_left_out` counts them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mm1_jax.config import config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.evals.benchmarks.base import Task, Verdict
from mm1_jax.evals.benchmarks.chat import (
    BY_LETTER,
    ChatBenchmark,
    by_letter,
    chat_corpus,
    option_of,
    with_options,
)
from mm1_jax.evals.benchmarks.published import AnnotationSource, ImageFile, question_record
from mm1_jax.evals.metrics.multiple_choice import SEED_IMAGE_TYPES, option_letter


class SeedBenchSource(AnnotationSource):
    """A question about a picture a record."""

    @config_class
    class Config(AnnotationSource.Config):
        folder: str = "seed"
        query_split: str = "image"
        support_split: str = "image"

    def read(self, split: str) -> list[dict[str, Any]]:
        (folder,) = self.images("SEED-Bench-image")
        records = []
        path = self.file("SEED-Bench.json")
        self.num_videos = 0
        for entry in self.entries(path, "questions"):
            kind = entry.integer("question_type_id")
            if kind not in SEED_IMAGE_TYPES:
                self.num_videos += 1
                continue
            options = by_letter([entry.text(f"choice_{letter}") for letter in "abcd"])
            answer = entry.text("answer")
            if answer not in options:
                raise entry.error(("answer",), "A, B, C or D", answer)
            question = with_options(entry.text("question"), options)
            image = ImageFile(folder, entry.key("data_id"))
            record = question_record(
                entry.key("question_id"), [image], question, [answer], options=options, kind=kind
            )
            records.append(dict(record))
        if not records:
            raise ValueError(f"{path}: no question about a picture")
        return records


class SeedBench(ChatBenchmark):
    """Percentages: of the questions about pictures, and of each type of them."""

    @config_class
    class Config(ChatBenchmark.Config):
        name: str = "seed"
        corpus: Corpus.Config = chat_corpus(SeedBenchSource.default_config(), "seed", BY_LETTER)
        headline: str = "image_acc"

    def judge(self, task: Task, answer: str) -> bool | None:
        return option_letter(answer, option_of(task)) == task.record["answer"]

    def columns(self, verdicts: Sequence[Verdict]) -> dict[str, np.ndarray]:
        correct = 100 * np.array([bool(verdict.correct) for verdict in verdicts], float)
        kinds = np.array([verdict.task.record["kind"] for verdict in verdicts])
        by_type = {
            f"type_{kind}_acc": np.where(kinds == kind, correct, np.nan)
            for kind in sorted(set(kinds.tolist()))
        }
        return {"image_acc": correct} | by_type

    def score(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        source = self._queries.source
        assert isinstance(source, SeedBenchSource)
        return super().score(verdicts) | {"videos_left_out": float(source.num_videos)}
