"""MME: two yes-no questions about each picture, in 14 subtasks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm1_jax.data.format_prompts import SHORT_ANSWER
from mm1_jax.data.readers.image_files import ImageFolder
from mm1_jax.evals.benchmark import Benchmark, Verdict
from mm1_jax.evals.benchmarks.annotations import HINT, AnnotationSource, ImageFile, question_record
from mm1_jax.evals.benchmarks.families import annotations, chat_benchmark, json_list
from mm1_jax.evals.predictions.files import read_text
from mm1_jax.evals.scoring import yes_no
from mm1_jax.evals.scoring.yes_no import MME_COGNITION, MME_PERCEPTION

_SUFFIXES = (".jpg", ".png", ".jpeg")
# The official prompt of MME ends with this sentence, which the instruction replaces.
_OFFICIAL = "Please answer yes or no."


def mme() -> Benchmark.Config:
    """MME: two yes-no questions about each picture, in 14 subtasks.

    mme/<subtask>/images/000000006723.jpg                   of some subtasks beside the questions
    mme/<subtask>/questions_answers_YN/000000006723.txt     two lines: question, tab, Yes or No
    """
    source = annotations(read_mme, "mme", "all", "all")
    return chat_benchmark(
        "mme", source, yes_no.mme, SHORT_ANSWER, headline="Perception", predictions=by_subtask
    )


def by_subtask(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    return json_list(
        {
            "category": x.task.record["subtask"],
            "image": x.task.record["image"],
            "answer": x.task.record["answer"],
            "prediction": x.answer,
        }
        for x in verdicts
    )


def read_mme(files: AnnotationSource, split: str) -> list[dict[str, Any]]:
    """Returns one record per question; each picture must have two."""
    subtasks = [
        name for name in (*MME_PERCEPTION, *MME_COGNITION) if (files.folder / name).is_dir()
    ]
    if not subtasks:
        raise ValueError(f"{files.folder}: no folder of a subtask, such as existence. {HINT}")
    return [record for name in subtasks for record in _subtask(files.folder / name, name)]


def _subtask(folder: Path, subtask: str) -> list[dict[str, Any]]:
    # Subtasks are distributed in two layouts: with these folders, or all files in one folder.
    questions, images = folder / "questions_answers_YN", folder / "images"
    questions = questions if questions.is_dir() else folder
    images = images if images.is_dir() else folder
    records = []
    pictures = ImageFolder(images)
    names = {Path(name).stem: name for name in pictures.names() if name.endswith(_SUFFIXES)}
    for path in sorted(questions.glob("*.txt")):
        lines = [line for line in read_text(path).split("\n") if line.strip()]
        if len(lines) != 2:
            raise ValueError(f"{path}: has {len(lines)} questions, expected two. {HINT}")
        # A missing picture is reported later, by `Benchmark.check`.
        name = names.get(path.stem, f"{path.stem}.jpg")
        for number, line in enumerate(lines):
            question, tab, answer = line.rpartition("\t")
            if not tab or answer.strip() not in ("Yes", "No"):
                raise ValueError(
                    f"{path}, line {number + 1}: expected a question, a tab, and Yes or No, "
                    f"got {line[:80]!r}"
                )
            asked = question.replace(_OFFICIAL, "").strip()
            records.append(
                question_record(
                    f"{subtask}/{path.stem}/{number}",
                    [ImageFile(pictures, name)],
                    asked,
                    [answer.strip()],
                    subtask=subtask,
                    image=name,
                    is_first=number == 0,
                )
            )
    if not records:
        raise ValueError(f"{questions}: no .txt file with questions. {HINT}")
    return records
