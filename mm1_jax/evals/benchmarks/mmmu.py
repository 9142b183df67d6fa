"""MMMU: questions of college exams, with up to seven pictures each."""

import ast
import re
from collections.abc import Sequence
from typing import Any

from mm1_jax.data.format_prompts import OPTION_LETTER, SHORT_ANSWER
from mm1_jax.evals.benchmark import Benchmark, Verdict
from mm1_jax.evals.benchmarks.annotations import HINT, AnnotationSource, Entry, question_record
from mm1_jax.evals.benchmarks.families import (
    LETTERS,
    annotations,
    by_letter,
    chat_benchmark,
    json_list,
    with_options,
)
from mm1_jax.evals.scoring.mmmu import mmmu_asked

_MARK = re.compile(r"<image (\d)>")
_COLUMNS = ("id", "question", "options", "answer", "question_type")
_NUM_IMAGES = 7


def mmmu() -> Benchmark.Config:
    """MMMU: questions of college exams, with up to seven pictures each.

        mmmu/<Subject>/validation-00000-of-00001.parquet     from the Hugging Face hub

    Columns: id, question and options (a list as text) with `<image 1>` in place of a picture,
    image_1 to image_7 (bytes), answer, question_type.
    """
    source = annotations(read_mmmu, "mmmu", "validation", "dev")
    # The instruction depends on the kind of question, so the records have it.
    return chat_benchmark(
        "mmmu",
        source,
        mmmu_asked,
        "",
        headline="overall",
        headline_scale=100.0,
        predictions=by_id,
    )


def by_id(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    return json_list(map(_prediction, verdicts))


def _prediction(verdict: Verdict) -> dict[str, Any]:
    record = verdict.task.record
    return {
        "id": verdict.task.key,
        "question_type": "multiple-choice" if record["is_choice"] else "open",
        "answer": record["answers"],
        "index2ans": record["options"],
        "category": record["subject"],
        "response": verdict.answer,
    }


def read_mmmu(files: AnnotationSource, split: str) -> list[dict[str, Any]]:
    """Returns one record per question; each picture is placed at its first mark in the text."""
    paths = sorted(files.folder.glob(f"*/{split}-*.parquet"))
    if not paths:
        raise ValueError(f"{files.folder}/*/{split}-*.parquet: no such file. {HINT}")
    return [_record(entry, path.parent.name) for path in paths for entry in files.entries(path)]


def _record(entry: Entry, subject: str) -> dict[str, Any]:
    for name in _COLUMNS:
        entry.text(name)
    is_choice = entry.text("question_type") == "multiple-choice"
    options = _list(entry, "options")
    if is_choice and not 2 <= len(options) <= len(LETTERS):
        raise entry.error(("options",), f"2 to {len(LETTERS)} options", options)
    named = by_letter(options)
    text = with_options(entry.text("question"), named)
    places = list(dict.fromkeys(int(number) for number in _MARK.findall(text)))
    pictures = {}
    for number in range(1, _NUM_IMAGES + 1):
        if (value := entry.values.get(f"image_{number}")) is not None:
            if not isinstance(value, dict) or not isinstance(value.get("bytes"), bytes):
                raise entry.error((f"image_{number}",), "a picture with its bytes", value)
            pictures[number] = value["bytes"]
    if lacking := [number for number in places if number not in pictures]:
        raise ValueError(f"{entry.where}: its text shows image {lacking[0]}, which is missing")
    # Pictures without a mark come first: the conversation shows them before the text.
    order = [number for number in pictures if number not in places] + places
    seen: set[str] = set()

    def mark(found: re.Match[str]) -> str:
        again = found[1] in seen
        seen.add(found[1])
        return f"image {found[1]}" if again else "<image>"

    answers = _answers(entry)
    instruction = OPTION_LETTER if is_choice else SHORT_ANSWER
    record = question_record(
        entry.text("id"),
        (),
        _MARK.sub(mark, text),
        answers,
        options=named,
        instruction=instruction,
        rationale=entry.text("explanation") if entry.has("explanation") else "",
    )
    images = [pictures[number] for number in order]
    return record | {"images": images, "subject": subject, "is_choice": is_choice}


def _answers(entry: Entry) -> list[str]:
    """Returns the accepted answers: several in a list as text, one, or none if it is "?"."""
    text = entry.text("answer")
    if text.startswith("["):
        return _list(entry, "answer")
    return [] if text == "?" else [text]


def _list(entry: Entry, name: str) -> list[str]:
    """Parses a list of texts that is written as a Python literal."""
    text = entry.text(name)
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        values = None
    if not isinstance(values, list):
        raise entry.error((name,), "a list of texts, as text", text)
    return [str(value) for value in values]
