"""VQAv2 and OK-VQA: questions about pictures of COCO, in the file layout of visualqa.org."""

from typing import Any

from mm1_jax.config import config_class
from mm1_jax.data.format_prompts import SHORT_ANSWER
from mm1_jax.evals.benchmark import Benchmark
from mm1_jax.evals.benchmarks.annotations import AnnotationSource, ImageFile, question_record
from mm1_jax.evals.benchmarks.families import answer_predictions, chat_benchmark, question_benchmark
from mm1_jax.evals.predictions.entries import by_key
from mm1_jax.evals.scoring.vqa import okvqa_accuracy, vqav2_accuracy


def vqav2() -> Benchmark.Config:
    """VQAv2 and OK-VQA: questions about pictures of COCO, in the file layout of visualqa.org.

        vqav2/v2_OpenEnded_mscoco_val2014_questions.json     `questions`: question_id, image_id, ..
        vqav2/v2_mscoco_val2014_annotations.json             `annotations`: question_id, ten answers
        vqav2/val2014/                                       COCO_val2014_000000262148.jpg

    OK-VQA's files are in `okvqa` and have no `v2_` in their names. Splits without annotations
    (test-dev2015, whose pictures are in test2015) are asked but not scored.
    """
    source = CocoQuestions.default_config()
    return question_benchmark("vqav2", source, vqav2_accuracy)


def vqav2_chat() -> Benchmark.Config:
    """VQAv2 as chat models are asked, with an instruction for short answers (MM1, table 4).

    The files are those of `vqav2`.
    """
    return chat_benchmark(
        "vqav2_chat",
        CocoQuestions.default_config(),
        vqav2_accuracy,
        SHORT_ANSWER,
        exemplar_split="train",
        headline="acc_processed",
        predictions=answer_predictions,
    )


def okvqa() -> Benchmark.Config:
    """VQAv2 and OK-VQA: questions about pictures of COCO, in the file layout of visualqa.org.

        vqav2/v2_OpenEnded_mscoco_val2014_questions.json     `questions`: question_id, image_id, ..
        vqav2/v2_mscoco_val2014_annotations.json             `annotations`: question_id, ten answers
        vqav2/val2014/                                       COCO_val2014_000000262148.jpg

    OK-VQA's files are in `okvqa` and have no `v2_` in their names. Splits without annotations
    (test-dev2015, whose pictures are in test2015) are asked but not scored.
    """
    source = CocoQuestions.default_config().set(folder="okvqa", prefix="")
    return question_benchmark("okvqa", source, okvqa_accuracy, headline="acc_stemmed")


def read_coco_questions(files: AnnotationSource, split: str) -> list[dict[str, Any]]:
    """Returns one record per question, with the answers of ten people."""
    prefix = files.config.prefix
    # All parts of the test split share its pictures.
    image_split = "test2015" if split.startswith("test") else split
    (folder,) = files.images(image_split)
    questions = files.entries(
        files.file(f"{prefix}OpenEnded_mscoco_{split}_questions.json"), "questions"
    )
    annotations = None
    if image_split != "test2015":
        path = files.file(f"{prefix}mscoco_{split}_annotations.json")
        annotations = by_key(files.entries(path, "annotations"), "question_id")
        if len(annotations) != len(questions):
            raise ValueError(
                f"{path}: has annotations of {len(annotations)} questions, but there are "
                f"{len(questions)}; both files must be complete and of the same split"
            )
    records = []
    for entry in questions:
        key, fields, answers = entry.key("question_id"), {}, []
        if annotations is not None:
            if key not in annotations:
                raise ValueError(f"{entry.where}: {path} has no annotation for it")
            annotation = annotations[key]
            answers = annotation.texts("answers")
            if annotation.has("multiple_choice_answer"):
                # This field is officially the most frequent answer.
                fields["answer"] = annotation.text("multiple_choice_answer")
            if annotation.has("answer_type"):
                fields["answer_type"] = annotation.text("answer_type")
            raw = [one.get("raw_answer") for one in annotation.values["answers"]]
            if all(isinstance(text, str) for text in raw):
                # OK-VQA's answers are stems of these original words.
                fields["raw_answers"] = raw
                fields["answer"] = max(raw, key=raw.count)
        name = f"COCO_{image_split}_{entry.integer('image_id'):012d}.jpg"
        image = ImageFile(folder, name)
        record = question_record(key, [image], entry.text("question"), answers, **fields)
        records.append(record | {"image": name})
    return records


class CocoQuestions(AnnotationSource):
    """Questions of VQAv2 or OK-VQA, with annotations in a separate file."""

    @config_class
    class Config(AnnotationSource.Config):
        folder: str = "vqav2"
        query_split: str = "val2014"
        support_split: str = "train2014"
        prefix: str = "v2_"  # Prefix of the file names.
        read: Any = read_coco_questions
