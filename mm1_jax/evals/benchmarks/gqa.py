"""GQA: questions about photographs, generated from scene graphs."""

from collections.abc import Sequence
from typing import Any

from mm1_jax.evals.benchmark import Benchmark, Verdict
from mm1_jax.evals.benchmarks.annotations import AnnotationSource, ImageFile, question_record
from mm1_jax.evals.benchmarks.families import annotations, json_list, question_benchmark
from mm1_jax.evals.scoring import short_answers


def gqa() -> Benchmark.Config:
    """GQA: questions about photographs, generated from scene graphs.

    gqa/testdev_balanced_questions.json  gqa/train_balanced_questions.json     an object by id
    gqa/images/                                                                <imageId>.jpg
    """
    source = annotations(read_gqa, "gqa", "testdev_balanced", "train_balanced")
    return question_benchmark(
        "gqa", source, short_answers.gqa, headline="acc", predictions=by_question
    )


def by_question(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    """Returns a predictions file as the official code reads it."""
    return json_list({"questionId": x.task.key, "prediction": x.answer} for x in verdicts)


def read_gqa(files: AnnotationSource, split: str) -> list[dict[str, Any]]:
    """Returns one record per question."""
    path = files.file(f"{split}_questions.json", f"questions/{split}_questions.json")
    (folder,) = files.images("images")
    records = []
    # The file is an object by id, whose keys become the `id` of the entries.
    for entry in files.entries(path):
        name = f"{entry.key('imageId')}.jpg"
        key, question = entry.key("id"), entry.text("question")
        answers = [entry.text("answer")]
        record = question_record(key, [ImageFile(folder, name)], question, answers)
        records.append(record | {"image": name})
    return records
