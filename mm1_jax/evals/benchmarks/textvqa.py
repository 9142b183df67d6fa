"""TextVQA: questions about the text in a picture."""

from typing import Any

from mm1_jax.data.format_prompts import SHORT_ANSWER
from mm1_jax.evals.benchmark import Benchmark
from mm1_jax.evals.benchmarks.annotations import AnnotationSource, ImageFile, question_record
from mm1_jax.evals.benchmarks.families import (
    annotations,
    answer_predictions,
    chat_benchmark,
    question_benchmark,
)
from mm1_jax.evals.scoring.vqa import vqa_accuracy


def textvqa() -> Benchmark.Config:
    """TextVQA: questions about the text in a picture.

    textvqa/TextVQA_0.5.1_train.json  textvqa/TextVQA_0.5.1_val.json   `data`, a question per entry
    textvqa/train_images/                                              <image_id>.jpg, both splits
    """
    source = annotations(read_textvqa, "textvqa", "val", "train")
    return question_benchmark("textvqa", source, vqa_accuracy)


def textvqa_chat() -> Benchmark.Config:
    """TextVQA as chat models are asked, with an instruction for short answers (MM1, table 4).

    The files are those of `textvqa`.
    """
    return chat_benchmark(
        "textvqa_chat",
        annotations(read_textvqa, "textvqa", "val", "train"),
        vqa_accuracy,
        SHORT_ANSWER,
        exemplar_split="train",
        headline="acc_processed",
        predictions=answer_predictions,
    )


def read_textvqa(files: AnnotationSource, split: str) -> list[dict[str, Any]]:
    """Returns one record per question; the test split has no answers."""
    (folder,) = files.images("test_images" if split == "test" else "train_images")
    records = []
    for entry in files.entries(files.file(f"TextVQA_0.5.1_{split}.json"), "data"):
        answers = [] if split == "test" else entry.texts("answers")
        image = ImageFile(folder, f"{entry.key('image_id')}.jpg")
        key, question = entry.key("question_id"), entry.text("question")
        records.append(question_record(key, [image], question, answers))
    return records
