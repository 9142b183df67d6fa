"""POPE: is there such a thing in this picture of COCO?

pope/coco_pope_random.json  coco_pope_popular.json  coco_pope_adversarial.json     lines of JSON
pope/val2014/                                                COCO_val2014_000000310196.jpg
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mm1_jax.config import config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.evals.benchmarks.base import Task, Verdict
from mm1_jax.evals.benchmarks.chat import IN_FEW_WORDS, ChatBenchmark, chat_corpus
from mm1_jax.evals.benchmarks.published import AnnotationSource, ImageFile, question_record
from mm1_jax.evals.metrics.yes_no import pope_says_yes
from mm1_jax.evals.predictions.yes_no import yes_or_no

PARTS = ("adversarial", "popular", "random")
_COUNTS = ("TP", "FP", "TN", "FN")


class PopeSource(AnnotationSource):
    """A question a record, of all three parts."""

    @config_class
    class Config(AnnotationSource.Config):
        folder: str = "pope"
        query_split: str = "val2014"
        support_split: str = "val2014"

    def read(self, split: str) -> list[dict[str, Any]]:
        (folder,) = self.images(split)
        records = []
        for part in PARTS:
            path = self.file(f"coco_pope_{part}.json", f"coco/coco_pope_{part}.json")
            for entry in self.entries(path):
                name = entry.text("image")
                record = question_record(
                    f"{part}/{entry.key('question_id')}",
                    [ImageFile(folder, name)],
                    entry.text("text"),
                    ["yes" if yes_or_no(entry, "label") else "no"],
                    part=part,
                    image=name,
                )
                records.append(dict(record))
        return records


class Pope(ChatBenchmark):
    """Shares of 1 for each part, and their means over the parts; the tables show the mean F1."""

    @config_class
    class Config(ChatBenchmark.Config):
        name: str = "pope"
        corpus: Corpus.Config = chat_corpus(PopeSource.default_config(), "pope", IN_FEW_WORDS)
        headline: str = "f1"
        headline_scale: float = 100.0

    def unit(self, task: Task) -> str:
        """The questions about a picture are not independent."""
        return task.record["image"]

    def judge(self, task: Task, answer: str) -> bool | None:
        return pope_says_yes(answer) == (task.record["answer"] == "yes")

    def columns(self, verdicts: Sequence[Verdict]) -> dict[str, np.ndarray]:
        said = np.array([pope_says_yes(verdict.answer) for verdict in verdicts])
        is_yes = np.array([verdict.task.record["answer"] == "yes" for verdict in verdicts])
        parts = np.array([verdict.task.record["part"] for verdict in verdicts])
        outcomes = (said & is_yes, said & ~is_yes, ~said & ~is_yes, ~said & is_yes)
        return {
            f"{part}_{name}": np.where(parts == part, outcome.astype(float), np.nan)
            for part in sorted(set(parts.tolist()))
            for name, outcome in zip(_COUNTS, outcomes, strict=True)
        }

    def combine(self, means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        parts = [name.removesuffix("_TP") for name in means if name.endswith("_TP")]
        scores: dict[str, np.ndarray] = {}
        for part in parts:
            TP, FP, TN, FN = (means[f"{part}_{name}"] for name in _COUNTS)
            precision, recall = _share(TP, TP + FP), _share(TP, TP + FN)
            values = {
                "accuracy": TP + TN,
                "precision": precision,
                "recall": recall,
                "f1": _share(2 * precision * recall, precision + recall),
                "yes_ratio": TP + FP,
            }
            scores |= {f"{part}_{name}": value for name, value in values.items()}
        names = ("accuracy", "precision", "recall", "f1", "yes_ratio")
        overall = {
            name: np.mean([scores[f"{part}_{name}"] for part in parts], axis=0) for name in names
        }
        return overall | scores

    def result(self, verdict: Verdict) -> dict[str, Any]:
        part, _, key = verdict.task.key.partition("/")
        label = verdict.task.record["answer"]
        return {"question_id": key, "split": part, "label": label, "answer": verdict.answer}


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Zero where the whole is nothing, as in the official code."""
    nothing = whole == 0
    share = np.where(nothing, 0.0, part / np.where(nothing, 1.0, whole))
    return np.where(np.isnan(whole), np.nan, share)
