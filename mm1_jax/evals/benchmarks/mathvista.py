"""MathVista: mathematical questions about pictures."""

from typing import Any

from mm1_jax.data.format_prompts import OPTION_LETTER, SHORT_ANSWER
from mm1_jax.evals.benchmark import Benchmark
from mm1_jax.evals.benchmarks.annotations import AnnotationSource, Entry, ImageFile, question_record
from mm1_jax.evals.benchmarks.families import annotations, by_letter, chat_benchmark, with_options
from mm1_jax.evals.scoring import mathvista as scoring


def mathvista() -> Benchmark.Config:
    """MathVista: mathematical questions about pictures.

    mathvista/testmini.json          by pid: question, image, choices, unit, precision, answer, ..
    mathvista/images/                1.jpg
    """
    source = annotations(read_mathvista, "mathvista", "testmini", "testmini")
    # The instruction depends on the kind of question, so the records have it.
    return chat_benchmark("mathvista", source, scoring.mathvista, "", headline="accuracy")


def read_mathvista(files: AnnotationSource, split: str) -> list[dict[str, Any]]:
    """Returns one record per question, with choices or the type of its answer."""
    path = files.file(f"{split}.json", f"data/{split}.json")
    return [_record(files, entry, split) for entry in files.entries(path)]


def _record(files: AnnotationSource, entry: Entry, split: str) -> dict[str, Any]:
    choices = entry.texts("choices") if entry.values.get("choices") else []
    question = entry.text("question")
    if entry.has("unit") and entry.text("unit"):
        question = f"{question} (Unit: {entry.text('unit')})"
    instruction = OPTION_LETTER if choices else SHORT_ANSWER
    options = by_letter(choices)
    question = with_options(question, options)
    # Images are named relative to the folder of the benchmark, such as "images/1.jpg".
    (folder,) = files.images("")
    # The answers of the large test split are not published.
    answers = [entry.text("answer")] if split == "testmini" else []
    precision = entry.values.get("precision")
    if precision not in (None, "") and not isinstance(precision, int | float):
        raise entry.error(("precision",), "a number of decimals", precision)
    record = question_record(
        entry.key("pid", "id"),
        [ImageFile(folder, entry.text("image"))],
        question,
        answers,
        # Exemplars answer as the instruction asks.
        answer=next((letter for letter, text in options.items() if [text] == answers), None),
        instruction=instruction,
        choices=choices,
        answer_type=entry.text("answer_type"),
        precision=None if precision in (None, "") else int(precision),
    )
    return record
