"""ScienceQA: schoolbook questions with options; papers report those with a picture as "IMG"."""

from typing import Any

from mm1_jax.config import config_class
from mm1_jax.data.format_prompts import OPTION_LETTER
from mm1_jax.data.readers.image_files import ImageFolder
from mm1_jax.evals.benchmark import Benchmark
from mm1_jax.evals.benchmarks.annotations import AnnotationSource, ImageFile, question_record
from mm1_jax.evals.benchmarks.families import by_letter, chat_benchmark, with_options
from mm1_jax.evals.scoring import multiple_choice
from mm1_jax.evals.scoring.multiple_choice import SCIENCEQA_LETTERS


def scienceqa() -> Benchmark.Config:
    """ScienceQA: schoolbook questions with options; papers report those with a picture as "IMG".

        scienceqa/problems.json                      by id: question, choices, answer, image, split
        scienceqa/images/<split>/<id>/image.png      or scienceqa/<split>/<id>/image.png

    Only questions with a picture are asked, unless `corpus.source.only_images` is False.
    """
    source = ScienceQuestions.default_config()
    return chat_benchmark(
        "scienceqa",
        source,
        multiple_choice.scienceqa,
        OPTION_LETTER,
        exemplar_split="train",
        headline="img_acc",
    )


def read_scienceqa(files: AnnotationSource, split: str) -> list[dict[str, Any]]:
    """Returns one record per question, with its options and its picture, if there is one."""
    path = files.file("problems.json", "data/scienceqa/problems.json")
    root = files.folder / "images" if (files.folder / "images").is_dir() else files.folder
    records = []
    for entry in files.entries(path):
        if entry.text("split") != split:
            continue
        key = entry.key("id")
        images = []
        # The field is null without a picture.
        if entry.values.get("image"):
            folder = ImageFolder(root / split / key)
            images = [ImageFile(folder, entry.text("image"))]
        elif files.config.only_images:
            continue
        choices = entry.texts("choices")
        number = entry.integer("answer")
        if not 0 <= number < len(choices) <= len(SCIENCEQA_LETTERS):
            raise entry.error(("answer",), f"the number of one of {choices}", number)
        options = by_letter(choices)
        hint = entry.text("hint") if entry.has("hint") else ""
        question = with_options(entry.text("question"), options, hint)
        answers = [SCIENCEQA_LETTERS[number]]
        # The reasoning of exemplars.
        rationale = entry.text("solution") if entry.has("solution") else ""
        record = question_record(
            key, images, question, answers, options=options, rationale=rationale
        )
        records.append(record)
    if not records:
        raise ValueError(f"{path}: no question of split {split!r} to ask")
    return records


class ScienceQuestions(AnnotationSource):
    """The questions of ScienceQA, all splits of which are in one file."""

    @config_class
    class Config(AnnotationSource.Config):
        folder: str = "scienceqa"
        query_split: str = "test"
        support_split: str = "train"
        only_images: bool = True
        read: Any = read_scienceqa
