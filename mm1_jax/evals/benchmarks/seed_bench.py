"""SEED-Bench: questions with four options, about pictures and videos.

    seed/SEED-Bench.json             `questions`: question_id, question_type_id, choice_a .. d
    seed/SEED-Bench-image/           named by `data_id`

Questions about videos (types 10 to 12) are not asked; the metric `videos_left_out` counts them.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from mm1_jax.config import config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.evals.benchmarks.base import Task, Verdict
from mm1_jax.evals.benchmarks.chat import (
    BY_LETTER,
    ChatBenchmark,
    chat_corpus,
    option_of,
    with_options,
)
from mm1_jax.evals.benchmarks.published import AnnotationSource, ImageFile, question_record
from mm1_jax.evals.metrics.multiple_choice import SEED_IMAGE_TYPES, SEED_TYPES, option_letter
from mm1_jax.evals.predictions.choices import lettered_options


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
        asked: Counter[str] = Counter()
        for entry in self.entries(path, "questions"):
            kind = entry.integer("question_type_id")
            if kind not in SEED_TYPES:
                raise entry.error(("question_type_id",), "1 to 12", kind)
            if kind not in SEED_IMAGE_TYPES:
                self.num_videos += 1
                continue
            options = lettered_options(entry) or {}
            answer = entry.text("answer")
            if answer not in options:
                raise entry.error(("answer",), f"one of {', '.join(options)}", answer)
            question = with_options(entry.text("question"), options)
            image = ImageFile(folder, entry.key("data_id"))
            question_id = entry.key("question_id")
            asked[question_id] += 1
            # The official file has question 49914 twice, and both count.
            number = "" if asked[question_id] == 1 else f"#{asked[question_id]}"
            record = question_record(
                question_id + number,
                [image],
                question,
                [answer],
                options=options,
                kind=kind,
                question_id=question_id,
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

    def result(self, verdict: Verdict) -> dict[str, Any]:
        question_id = verdict.task.record["question_id"]
        return super().result(verdict) | {"question_id": question_id}

    def score(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        source = self._queries.source
        assert isinstance(source, SeedBenchSource)
        return super().score(verdicts) | {"videos_left_out": float(source.num_videos)}
