"""VQAv2 and OK-VQA, questions about pictures of COCO in the files of visualqa.org.

    vqav2/v2_OpenEnded_mscoco_val2014_questions.json     `questions`: question_id, image_id, ..
    vqav2/v2_mscoco_val2014_annotations.json             `annotations`: question_id, ten answers
    vqav2/val2014/                                       COCO_val2014_000000262148.jpg

OK-VQA's files have no `v2_` and no `v2` in their names, and lie in `okvqa`. Splits without
annotations (test-dev2015, whose pictures are in test2015) are asked, and not scored.
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
    VqaBenchmark,
    question_corpus,
    question_record,
)
from mm1_jax.evals.metrics.answers import normalise
from mm1_jax.evals.metrics.vqa import OkVqaStemmer, agreement, evalai
from mm1_jax.evals.predictions.records import by_key


class CocoQuestionsSource(AnnotationSource):
    """A question a record, with the answers of ten people."""

    @config_class
    class Config(AnnotationSource.Config):
        folder: str = "vqav2"
        query_split: str = "val2014"
        support_split: str = "train2014"
        prefix: str = "v2_"  # Of the names of the files.

    def read(self, split: str) -> list[dict[str, Any]]:
        prefix = self.config.prefix
        # The parts of the test split have its pictures.
        image_split = "test2015" if split.startswith("test") else split
        (folder,) = self.images(image_split)
        questions = self.entries(
            self.file(f"{prefix}OpenEnded_mscoco_{split}_questions.json"), "questions"
        )
        annotations = None
        if image_split != "test2015":
            path = self.file(f"{prefix}mscoco_{split}_annotations.json")
            annotations = by_key(self.entries(path, "annotations"), "question_id")
            if len(annotations) != len(questions):
                raise ValueError(
                    f"{path}: has annotations of {len(annotations)} questions, and there are "
                    f"{len(questions)}; both files must be whole, and of one split"
                )
        records = []
        for entry in questions:
            key, fields, answers = entry.key("question_id"), {}, []
            if annotations is not None:
                if key not in annotations:
                    raise ValueError(f"{entry.where}: {path} has no annotation of it")
                annotation = annotations[key]
                answers = annotation.texts("answers")
                if annotation.has("multiple_choice_answer"):
                    # Officially the answer of most people.
                    fields["answer"] = annotation.text("multiple_choice_answer")
                if annotation.has("answer_type"):
                    fields["answer_type"] = annotation.text("answer_type")
                raw = [one.get("raw_answer") for one in annotation.values["answers"]]
                if all(isinstance(text, str) for text in raw):
                    # People's own words, of which OK-VQA's answers are stems.
                    fields["raw_answers"] = raw
                    fields["answer"] = max(raw, key=raw.count)
            name = f"COCO_{image_split}_{entry.integer('image_id'):012d}.jpg"
            image = ImageFile(folder, name)
            record = question_record(key, [image], entry.text("question"), answers, **fields)
            records.append(dict(record) | {"image": name})
        return records


class VqaV2(VqaBenchmark):
    """VQA accuracy, of all questions and by the type of their answer."""

    @config_class
    class Config(VqaBenchmark.Config):
        name: str = "vqav2"
        corpus: Corpus.Config = question_corpus(CocoQuestionsSource.default_config(), "vqav2")

    def unit(self, task: Task) -> str:
        """The questions about a picture are not independent."""
        return task.record["image"]

    def columns(self, verdicts: Sequence[Verdict]) -> dict[str, np.ndarray]:
        columns = super().columns(verdicts)
        types = np.array([verdict.task.record.get("answer_type", "") for verdict in verdicts])
        for name in sorted(set(types.tolist()) - {""}):
            key = f"acc_processed_{normalise(name).replace('/', '_')}"
            columns[key] = np.where(types == name, columns["acc_processed"], np.nan)
        return columns


class OkVqa(VqaBenchmark):
    """OK-VQA: VQA accuracy, of replies that are stemmed as its answers are."""

    @config_class
    class Config(VqaBenchmark.Config):
        name: str = "okvqa"
        corpus: Corpus.Config = question_corpus(
            CocoQuestionsSource.default_config().set(folder="okvqa", prefix=""), "okvqa"
        )
        headline: str = "acc_stemmed"

    def columns(self, verdicts: Sequence[Verdict]) -> dict[str, np.ndarray]:
        records = [verdict.task.record for verdict in verdicts]
        pairs = [
            pair
            for record in records
            for pair in zip(record.get("raw_answers", ()), record["answers"], strict=False)
        ]
        stem = OkVqaStemmer(OkVqaStemmer.learn(pairs))
        stemmed = [
            agreement(stem(evalai(verdict.answer)), [evalai(text) for text in record["answers"]])
            for verdict, record in zip(verdicts, records, strict=True)
        ]
        return super().columns(verdicts) | {"acc_stemmed": 100 * np.array(stemmed)}
