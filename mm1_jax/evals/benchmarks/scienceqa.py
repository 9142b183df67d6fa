"""ScienceQA: questions of schoolbooks with options; those with a picture make "IMG".

    scienceqa/problems.json                      by id: question, choices, answer, image, split
    scienceqa/images/<split>/<id>/image.png      or scienceqa/<split>/<id>/image.png

Questions without a picture are asked as well where `only_images` is not set.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mm1_jax.config import config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.readers.image_files import ImageFolder
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
from mm1_jax.evals.metrics.multiple_choice import SCIENCEQA_LETTERS, scienceqa_letter


class ScienceQASource(AnnotationSource):
    """A question a record, with its options and, of some, a picture."""

    @config_class
    class Config(AnnotationSource.Config):
        folder: str = "scienceqa"
        query_split: str = "test"
        support_split: str = "train"
        only_images: bool = True

    def read(self, split: str) -> list[dict[str, Any]]:
        path = self.file("problems.json", "data/scienceqa/problems.json")
        root = self.folder / "images" if (self.folder / "images").is_dir() else self.folder
        records = []
        for entry in self.entries(path):
            if entry.text("split") != split:
                continue
            key = entry.key("id")
            images = []
            # Questions without a picture have null there.
            if entry.values.get("image"):
                folder = ImageFolder(root / split / key)
                images = [ImageFile(folder, entry.text("image"))]
            elif self.config.only_images:
                continue
            choices = entry.texts("choices")
            number = entry.integer("answer")
            if not 0 <= number < len(choices) <= len(SCIENCEQA_LETTERS):
                raise entry.error(("answer",), f"the number of one of {choices}", number)
            options = by_letter(choices)
            hint = entry.text("hint") if entry.has("hint") else ""
            question = with_options(entry.text("question"), options, hint)
            answers = [SCIENCEQA_LETTERS[number]]
            record = question_record(key, images, question, answers, options=options)
            records.append(dict(record))
        if not records:
            raise ValueError(f"{path}: no question of split {split!r} that is asked")
        return records


class ScienceQA(ChatBenchmark):
    """Accuracies in percent: of all that is asked, and of the questions with a picture."""

    @config_class
    class Config(ChatBenchmark.Config):
        name: str = "scienceqa"
        corpus: Corpus.Config = chat_corpus(
            ScienceQASource.default_config(), "scienceqa", BY_LETTER
        )
        exemplar_split: str = "train"
        headline: str = "img_acc"

    def judge(self, task: Task, answer: str) -> bool | None:
        return scienceqa_letter(answer, len(option_of(task))) == task.record["answer"]

    def columns(self, verdicts: Sequence[Verdict]) -> dict[str, np.ndarray]:
        correct = 100 * np.array([bool(verdict.correct) for verdict in verdicts], float)
        shown = np.array([bool(verdict.task.record["images"]) for verdict in verdicts])
        return {"acc": correct, "img_acc": np.where(shown, correct, np.nan)}
