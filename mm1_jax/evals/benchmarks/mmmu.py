"""MMMU: questions of college exams, with up to seven pictures each.

    mmmu/<Subject>/validation-00000-of-00001.parquet     as on the hub of Hugging Face

Columns: id, question and options (a list as text) with `<image 1>` where a picture is, image_1 to
image_7 (bytes), answer, question_type.
"""

import ast
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mm1_jax.config import config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.evals.benchmarks.base import Task, Verdict
from mm1_jax.evals.benchmarks.chat import (
    BY_LETTER,
    IN_FEW_WORDS,
    LETTERS,
    ChatBenchmark,
    by_letter,
    chat_corpus,
    option_of,
    with_options,
)
from mm1_jax.evals.benchmarks.published import HINT, AnnotationSource, Entry, question_record
from mm1_jax.evals.metrics import mmmu

_MARK = re.compile(r"<image (\d)>")
_COLUMNS = ("id", "question", "options", "answer", "question_type")
_NUM_IMAGES = 7


class MmmuSource(AnnotationSource):
    """A question a record; its pictures stand where the text names them first."""

    @config_class
    class Config(AnnotationSource.Config):
        folder: str = "mmmu"
        query_split: str = "validation"
        support_split: str = "dev"

    def read(self, split: str) -> list[dict[str, Any]]:
        paths = sorted(self.folder.glob(f"*/{split}-*.parquet"))
        if not paths:
            raise ValueError(f"{self.folder}/*/{split}-*.parquet: no such file; {HINT}")
        records = []
        for path in paths:
            try:
                rows = pq.read_table(path).to_pylist()
            except (OSError, pa.ArrowException) as error:
                raise ValueError(f"{path}: not a whole Parquet file ({error}); {HINT}") from error
            for number, row in enumerate(rows, start=1):
                entry = Entry(row, f"{path}, row {number}", HINT)
                records.append(self._record(entry, path.parent.name))
        return records

    def _record(self, entry: Entry, subject: str) -> dict[str, Any]:
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
            raise ValueError(f"{entry.where}: its text shows image {lacking[0]}, which it lacks")
        # Those that no text names come first, where the conversation puts them.
        order = [number for number in pictures if number not in places] + places
        seen: set[str] = set()

        def mark(found: re.Match[str]) -> str:
            again = found[1] in seen
            seen.add(found[1])
            return f"image {found[1]}" if again else "<image>"

        answers = self._answers(entry)
        instruction = BY_LETTER if is_choice else IN_FEW_WORDS
        question = f"{_MARK.sub(mark, text)}\n{instruction}"
        record = question_record(entry.text("id"), (), question, answers, options=named)
        images = [pictures[number] for number in order]
        return dict(record) | {"images": images, "subject": subject, "is_choice": is_choice}

    def _answers(self, entry: Entry) -> list[str]:
        """An open question has several as a list in a text; one without a label has "?"."""
        text = entry.text("answer")
        if text.startswith("["):
            return _list(entry, "answer")
        return [] if text == "?" else [text]


def _list(entry: Entry, name: str) -> list[str]:
    """A list of texts that is written as Python writes it."""
    text = entry.text(name)
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        values = None
    if not isinstance(values, list):
        raise entry.error((name,), "a list of texts, as text", text)
    return [str(value) for value in values]


class Mmmu(ChatBenchmark):
    """Shares of 1: of all questions, and by subject; `random` is of replies that name no option."""

    @config_class
    class Config(ChatBenchmark.Config):
        name: str = "mmmu"
        # The instruction depends on the kind of question, and is part of it.
        corpus: Corpus.Config = chat_corpus(MmmuSource.default_config(), "mmmu", "")
        headline: str = "overall"
        headline_scale: float = 100.0

    def judge(self, task: Task, answer: str) -> bool | None:
        answers = task.record["answers"]
        if not answers:
            return None
        if not task.record["is_choice"]:
            return mmmu.open_correct(mmmu.open_answers(answer), answers)
        options = option_of(task)
        chosen = mmmu.chosen_option(answer, options)
        return (chosen or mmmu.chance_option(task.key, list(options))) in answers

    def columns(self, verdicts: Sequence[Verdict]) -> dict[str, np.ndarray]:
        correct = np.array([bool(verdict.correct) for verdict in verdicts], float)
        random = np.array([_is_random(verdict) for verdict in verdicts], float)
        subjects = np.array([verdict.task.record["subject"] for verdict in verdicts])
        by_subject = {
            f"subject_{name}": np.where(subjects == name, correct, np.nan)
            for name in sorted(set(subjects.tolist()))
        }
        return {"overall": correct, "random": random} | by_subject

    def result(self, verdict: Verdict) -> dict[str, Any]:
        record = verdict.task.record
        kind = "multiple-choice" if record["is_choice"] else "open"
        return {
            "id": verdict.task.key,
            "question_type": kind,
            "answer": record["answers"],
            "index2ans": record["options"],
            "category": record["subject"],
            "response": verdict.answer,
        }


def _is_random(verdict: Verdict) -> bool:
    record = verdict.task.record
    return record["is_choice"] and mmmu.chosen_option(verdict.answer, record["options"]) is None
