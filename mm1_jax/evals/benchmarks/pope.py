"""POPE: yes-no questions whether a picture of COCO shows an object."""

from collections.abc import Sequence
from typing import Any

from mm1_jax.data.format_prompts import SHORT_ANSWER
from mm1_jax.evals.benchmark import Benchmark, Verdict
from mm1_jax.evals.benchmarks.annotations import AnnotationSource, ImageFile, question_record
from mm1_jax.evals.benchmarks.families import annotations, chat_benchmark, json_list
from mm1_jax.evals.predictions.yes_no import yes_or_no
from mm1_jax.evals.scoring import yes_no

PARTS = ("adversarial", "popular", "random")


def pope() -> Benchmark.Config:
    """POPE: yes-no questions whether a picture of COCO shows an object.

    pope/coco_pope_random.json  coco_pope_popular.json  coco_pope_adversarial.json     lines of JSON
    pope/val2014/                                                COCO_val2014_000000310196.jpg
    """
    source = annotations(read_pope, "pope", "val2014", "val2014")
    return chat_benchmark(
        "pope",
        source,
        yes_no.pope,
        SHORT_ANSWER,
        headline="f1",
        headline_scale=100.0,
        predictions=by_part,
    )


def by_part(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    return json_list(
        {
            "question_id": x.task.key.partition("/")[2],
            "split": x.task.record["part"],
            "label": x.task.record["answer"],
            "answer": x.answer,
        }
        for x in verdicts
    )


def read_pope(files: AnnotationSource, split: str) -> list[dict[str, Any]]:
    """Returns one record per question of all three parts."""
    (folder,) = files.images(split)
    records = []
    for part in PARTS:
        path = files.file(f"coco_pope_{part}.json", f"coco/coco_pope_{part}.json")
        for entry in files.entries(path):
            name = entry.text("image")
            record = question_record(
                f"{part}/{entry.key('question_id')}",
                [ImageFile(folder, name)],
                entry.text("text"),
                [yes_or_no(entry, "label")],
                part=part,
                image=name,
            )
            records.append(record)
    return records
