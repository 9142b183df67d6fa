"""MME: two yes-no questions about each picture, in 14 subtasks.

mme/<subtask>/images/000000006723.jpg                   of some subtasks beside the questions
mme/<subtask>/questions_answers_YN/000000006723.txt     lines of question, tab, Yes or No
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mm1_jax.config import config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.readers.image_files import ImageFolder
from mm1_jax.evals.benchmarks.base import Task, Verdict
from mm1_jax.evals.benchmarks.chat import IN_FEW_WORDS, ChatBenchmark, chat_corpus
from mm1_jax.evals.benchmarks.published import HINT, AnnotationSource, ImageFile, question_record
from mm1_jax.evals.metrics.yes_no import MME_COGNITION, MME_PERCEPTION, mme_reply
from mm1_jax.evals.predictions.files import read_text

_SUFFIXES = (".jpg", ".png", ".jpeg")
# The official prompt of MME has this where others have the last sentence.
_OFFICIAL = "Please answer yes or no."


class MmeSource(AnnotationSource):
    """A question a record; of each picture there must be two."""

    @config_class
    class Config(AnnotationSource.Config):
        folder: str = "mme"
        query_split: str = "all"
        support_split: str = "all"

    def read(self, split: str) -> list[dict[str, Any]]:
        subtasks = [
            name for name in (*MME_PERCEPTION, *MME_COGNITION) if (self.folder / name).is_dir()
        ]
        if not subtasks:
            raise ValueError(f"{self.folder}: no folder of a subtask, such as existence; {HINT}")
        return [record for name in subtasks for record in self._subtask(name)]

    def _subtask(self, subtask: str) -> list[dict[str, Any]]:
        folder = self.folder / subtask
        # The two layouts in which subtasks are distributed.
        questions, images = folder / "questions_answers_YN", folder / "images"
        questions = questions if questions.is_dir() else folder
        images = images if images.is_dir() else folder
        records = []
        pictures = ImageFolder(images)
        names = {Path(name).stem: name for name in pictures.names() if name.endswith(_SUFFIXES)}
        for path in sorted(questions.glob("*.txt")):
            lines = [line for line in read_text(path).split("\n") if line.strip()]
            if len(lines) != 2:
                raise ValueError(f"{path}: has {len(lines)} questions, expected two; {HINT}")
            # Where there is none, the check of pictures says so.
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
                    dict(
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
                )
        if not records:
            raise ValueError(f"{questions}: no .txt file with questions; {HINT}")
        return records


class Mme(ChatBenchmark):
    """The scores of subtasks, and the sums of its halves where all their subtasks are there."""

    @config_class
    class Config(ChatBenchmark.Config):
        name: str = "mme"
        corpus: Corpus.Config = chat_corpus(MmeSource.default_config(), "mme", IN_FEW_WORDS)
        headline: str = "Perception"

    def unit(self, task: Task) -> str:
        """Both questions about a picture."""
        return f"{task.record['subtask']}/{task.record['image']}"

    def judge(self, task: Task, answer: str) -> bool | None:
        return mme_reply(answer) == task.record["answer"].lower()

    def columns(self, verdicts: Sequence[Verdict]) -> dict[str, np.ndarray]:
        correct = 100 * np.array([bool(verdict.correct) for verdict in verdicts], float)
        units = [self.unit(verdict.task) for verdict in verdicts]
        both: dict[str, float] = {}
        for unit, value in zip(units, correct, strict=True):
            both[unit] = min(both.get(unit, 100.0), value)
        # A picture counts once, at its first question.
        firsts = np.array([verdict.task.record["is_first"] for verdict in verdicts])
        plus = np.where(firsts, [both[unit] for unit in units], np.nan)
        subtasks = np.array([verdict.task.record["subtask"] for verdict in verdicts])
        columns = {}
        for name in sorted(set(subtasks.tolist())):
            columns[f"{name}_acc"] = np.where(subtasks == name, correct, np.nan)
            columns[f"{name}_acc_plus"] = np.where(subtasks == name, plus, np.nan)
        return columns

    def combine(self, means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [name.removesuffix("_acc") for name in means if name.endswith("_acc")]
        scores = {name: means[f"{name}_acc"] + means[f"{name}_acc_plus"] for name in names}
        halves = {"Perception": MME_PERCEPTION, "Cognition": MME_COGNITION}
        sums = {
            half: np.sum([scores[name] for name in subtasks], axis=0)
            for half, subtasks in halves.items()
            if set(subtasks) <= set(scores)
        }
        return sums | scores

    def result(self, verdict: Verdict) -> dict[str, Any]:
        record = verdict.task.record
        return {
            "category": record["subtask"],
            "image": record["image"],
            "answer": record["answer"],
            "prediction": verdict.answer,
        }
