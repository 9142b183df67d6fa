"""VizWiz-VQA: questions that blind people asked about their own pictures."""

from collections.abc import Sequence
from typing import Any

from mm1_jax.evals.benchmark import Benchmark, Verdict
from mm1_jax.evals.benchmarks.annotations import AnnotationSource, ImageFile, question_record
from mm1_jax.evals.benchmarks.families import annotations, json_list, question_benchmark
from mm1_jax.evals.scoring.vqa import vqa_accuracy


def vizwiz() -> Benchmark.Config:
    """VizWiz-VQA: questions that blind people asked about their own pictures.

    vizwiz/Annotations/train.json  val.json  test.json     a list: image, question, ten answers
    vizwiz/train/  val/  test/                             VizWiz_val_00000000.jpg
    """
    source = annotations(read_vizwiz, "vizwiz", "val", "train")
    return question_benchmark("vizwiz", source, vqa_accuracy, predictions=by_picture)


def by_picture(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    return json_list({"image": x.task.key, "answer": x.answer} for x in verdicts)


def read_vizwiz(files: AnnotationSource, split: str) -> list[dict[str, Any]]:
    """Returns one record per picture and its question; the test split has no answers."""
    (folder,) = files.images(split)
    records = []
    for entry in files.entries(files.file(f"Annotations/{split}.json", f"{split}.json")):
        name = entry.text("image")
        answers = [] if split == "test" else entry.texts("answers")
        image = ImageFile(folder, name)
        records.append(question_record(name, [image], entry.text("question"), answers))
    return records
