"""Replies that a judge graded: LLaVA-Bench (in the wild) and MM-Vet."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from mm1_jax.evals.metrics.answers import mean
from mm1_jax.evals.metrics.judged import (
    UNREADABLE_REVIEW,
    llava_bench_scores,
    mmvet_scores,
    review_grades,
)
from mm1_jax.evals.predictions.base import Metrics, Scorer, ScoringJob
from mm1_jax.evals.predictions.records import Record, is_number, literal

_REVIEW = re.compile(r"(.+)_review\d+")


class LlavaBenchScorer(Scorer):
    """Relative scores by category, of each review; `NAME_mean` over NAME_review1 and on."""

    layout = (
        'NAME_reviewN.jsonl, records {"question_id", "category", "tuple": [grade of the reference, '
        'of the model]} or "content", the review, that begins with the two grades'
    )
    annotations = 'records {"question_id", "category"}, where the reviews lack it'

    def files(self, folder: Path) -> list[Path]:
        return [path for path in super().files(folder) if "review" in path.stem]

    def score_file(self, path: Path, job: ScoringJob) -> Metrics:
        grades: dict[str, list[tuple[float, float]]] = {}
        num_unreadable = 0
        for said, asked in job.paired(path, "question_id"):
            category, pair = asked.text("category"), _pair_of_grades(said)
            if pair == UNREADABLE_REVIEW:
                num_unreadable += 1
            else:
                grades.setdefault(category, []).append(pair)
        for category, pairs in grades.items():
            if not any(reference for reference, _ in pairs):
                raise ValueError(
                    f"{path}: of category {category!r}, all grades of the reference are 0, and "
                    "the score is relative to them"
                )
        if not grades:
            raise ValueError(f"{path}: no review has grades; all are -1 and -1")
        scores: Metrics = dict(llava_bench_scores(grades))
        return scores | ({"unreadable_reviews": num_unreadable} if num_unreadable else {})

    def score_together(self, scores: Mapping[str, Metrics]) -> dict[str, Metrics]:
        by_model: dict[str, list[float]] = {}
        for name, metrics in scores.items():
            if found := _REVIEW.fullmatch(name):
                by_model.setdefault(found[1], []).append(metrics["all"]["relative"])
        return {
            f"{model}_mean": {"value": mean(values), "n_reviews": len(values)}
            for model, values in by_model.items()
        }


def _pair_of_grades(record: Record) -> tuple[float, float]:
    if record.has("tuple"):
        grades = record.values["tuple"]
        if isinstance(grades, str):
            grades = literal(grades, list)
        if not (isinstance(grades, list) and len(grades) == 2 and all(map(is_number, grades))):
            raise record.error(("tuple",), "two grades", record.values["tuple"])
        pair = _as_float(grades[0]), _as_float(grades[1])
    else:
        try:
            pair = review_grades(record.text("content", expected="the review, a text"))
        except ValueError as error:
            raise ValueError(f"{record.where}, field 'content': {error}") from error
    if pair != UNREADABLE_REVIEW and not all(0 <= grade <= 10 for grade in pair):
        raise ValueError(f"{record.where}: expected two grades of 0 to 10, got {pair}")
    return pair


def _as_float(grade: float) -> float:
    try:
        return float(grade)
    except OverflowError:
        return math.inf


class MmVetScorer(Scorer):
    """MM-Vet as percentages: the mean of each run of the judge, and of all; by capability."""

    layout = (
        'MODEL_grades.jsonl, records {"id", "score": [grade of each run]}; or the official object '
        "of these by id"
    )
    annotations = 'the official mm-vet.json, {id: {"capability": [..]}}, for scores by capability'

    def name(self, path: Path) -> str:
        return path.stem.removesuffix("_grades")

    def score_file(self, path: Path, job: ScoringJob) -> Metrics:
        pairs = job.paired(path, "id")
        grades = [_grades(said) for said, _ in pairs]
        for (said, _), runs in zip(pairs, grades, strict=True):
            if len(runs) != len(grades[0]):
                raise said.error(("score",), f"{len(grades[0])} grades, as others have", runs)
        capabilities = None
        if job.annotations is not None or all(asked.has("capability") for _, asked in pairs):
            capabilities = [asked.texts("capability") for _, asked in pairs]
        return dict(mmvet_scores(grades, capabilities))


def _grades(record: Record) -> list[float]:
    grades = record.get("score", expected="a list of grades, one of each run")
    if isinstance(grades, str):
        grades = literal(grades, list) or [record.number("score")]
    grades = grades if isinstance(grades, list) else [grades]
    if not grades or not all(is_number(grade) and 0 <= grade <= 1 for grade in grades):
        raise record.error(("score",), "grades of 0 to 1, one of each run of the judge", grades)
    return [float(grade) for grade in grades]
