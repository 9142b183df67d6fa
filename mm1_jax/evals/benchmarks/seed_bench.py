"""SEED-Bench: questions with four options, about pictures and videos."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mm1_jax.data.format_prompts import OPTION_LETTER
from mm1_jax.evals.benchmark import Benchmark, Verdict
from mm1_jax.evals.benchmarks.annotations import AnnotationSource, ImageFile, question_record
from mm1_jax.evals.benchmarks.families import annotations, chat_benchmark, json_list, with_options
from mm1_jax.evals.predictions.choices import lettered_options
from mm1_jax.evals.scoring.multiple_choice import SEED_IMAGE_TYPES, SEED_TYPES, seed_images


def seed() -> Benchmark.Config:
    """SEED-Bench: questions with four options, about pictures and videos.

        seed/SEED-Bench.json             `questions`: question_id, question_type_id, choice_a .. d
        seed/SEED-Bench-image/           named by `data_id`

    Questions about videos (types 10 to 12) are not asked; the metric `videos_left_out` counts them.
    """
    source = annotations(read_seed, "seed", "image", "image")
    return chat_benchmark(
        "seed", source, seed_images, OPTION_LETTER, headline="image_acc", predictions=by_question
    )


def by_question(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    return json_list(
        {"question_id": x.task.record["question_id"], "prediction": x.answer} for x in verdicts
    )


def read_seed(files: AnnotationSource, split: str) -> list[dict[str, Any]]:
    """Returns one record per question about a picture."""
    (folder,) = files.images("SEED-Bench-image")
    records = []
    path = files.file("SEED-Bench.json")
    num_videos = 0
    asked: Counter[str] = Counter()
    for entry in files.entries(path, "questions"):
        kind = entry.integer("question_type_id")
        if kind not in SEED_TYPES:
            raise entry.error(("question_type_id",), "1 to 12", kind)
        if kind not in SEED_IMAGE_TYPES:
            num_videos += 1
            continue
        options = lettered_options(entry) or {}
        answer = entry.text("answer")
        if answer not in options:
            raise entry.error(("answer",), f"one of {', '.join(options)}", answer)
        question = with_options(entry.text("question"), options)
        image = ImageFile(folder, entry.key("data_id"))
        question_id = entry.key("question_id")
        asked[question_id] += 1
        # The official file contains question 49914 twice, and both count.
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
        records.append(record)
    if not records:
        raise ValueError(f"{path}: no question about a picture")
    files.remarks["videos_left_out"] = float(num_videos)
    return records
