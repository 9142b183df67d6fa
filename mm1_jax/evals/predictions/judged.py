"""Replies graded by a judge: LLaVA-Bench (in the wild) and MM-Vet."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mm1_jax.evals.predictions.entries import Entry, is_number, literal
from mm1_jax.evals.predictions.scorer import Metrics, Scorer, ScoringJob, prediction_files
from mm1_jax.evals.scoring.judged import (
    UNREADABLE_REVIEW,
    llava_bench_scores,
    mmvet_scores,
    review_grades,
)
from mm1_jax.evals.scoring.texts import mean

_REVIEW = re.compile(r"(.+)_review\d+")


class _Review(NamedTuple):
    category: str
    grades: tuple[float, float]


def _reviews(path: Path, job: ScoringJob) -> list[_Review]:
    pairs = job.paired(path, "question_id")
    reviews = [
        _Review(reference.text("category"), _pair_of_grades(prediction))
        for prediction, reference in pairs
    ]
    readable = [each for each in reviews if each.grades != UNREADABLE_REVIEW]
    for category in dict.fromkeys(each.category for each in readable):
        if not any(each.grades[0] for each in readable if each.category == category):
            raise ValueError(
                f"{path}: all grades of the reference in category {category!r} are 0, so a score "
                "relative to them is undefined"
            )
    if not readable:
        raise ValueError(f"{path}: no review has grades; all are -1 and -1")
    return reviews


def _llava_bench_metrics(reviews: Sequence[_Review], job: ScoringJob) -> Metrics:
    grades: dict[str, list[tuple[float, float]]] = {}
    for category, pair in reviews:
        if pair != UNREADABLE_REVIEW:
            grades.setdefault(category, []).append(pair)
    num_unreadable = len(reviews) - sum(map(len, grades.values()))
    scores: Metrics = dict(llava_bench_scores(grades))
    return scores | ({"unreadable_reviews": num_unreadable} if num_unreadable else {})


def _mean_of_reviews(scores: Mapping[str, Metrics]) -> dict[str, Metrics]:
    by_model: dict[str, list[float]] = {}
    for name, metrics in scores.items():
        if found := _REVIEW.fullmatch(name):
            by_model.setdefault(found[1], []).append(metrics["all"]["relative"])
    return {
        f"{model}_mean": {"value": mean(values), "n_reviews": len(values)}
        for model, values in by_model.items()
    }


def _pair_of_grades(entry: Entry) -> tuple[float, float]:
    if entry.has("tuple"):
        grades = entry.values["tuple"]
        if isinstance(grades, str):
            grades = literal(grades, list)
        if not (isinstance(grades, list) and len(grades) == 2 and all(map(is_number, grades))):
            raise entry.error(("tuple",), "two grades", entry.values["tuple"])
        pair = _as_float(grades[0]), _as_float(grades[1])
    else:
        try:
            pair = review_grades(entry.text("content", expected="the review, a text"))
        except ValueError as error:
            raise ValueError(f"{entry.where}, field 'content': {error}") from error
    if pair != UNREADABLE_REVIEW and not all(0 <= grade <= 10 for grade in pair):
        raise ValueError(f"{entry.where}: expected two grades of 0 to 10, got {pair}")
    return pair


def _as_float(grade: float) -> float:
    try:
        return float(grade)
    except OverflowError:
        return math.inf


# Relative scores per category and review; `NAME_mean` averages NAME_review1, NAME_review2, ..
LLAVA_BENCH = Scorer(
    layout=(
        'NAME_reviewN.jsonl, records {"question_id", "category", "tuple": [grade of the reference, '
        'of the model]} or "content", the review, which begins with the two grades'
    ),
    annotations='records {"question_id", "category"}, if the reviews lack the category',
    read=_reviews,
    metrics=_llava_bench_metrics,
    files=lambda folder: [path for path in prediction_files(folder) if "review" in path.stem],
    joint=_mean_of_reviews,
)


class _Graded(NamedTuple):
    grades: list[float]
    capabilities: list[str] | None


def _graded_answers(path: Path, job: ScoringJob) -> list[_Graded]:
    pairs = job.paired(path, "id")
    grades = [_grades(prediction) for prediction, _ in pairs]
    for (prediction, _), runs in zip(pairs, grades, strict=True):
        if len(runs) != len(grades[0]):
            raise prediction.error(("score",), f"{len(grades[0])} grades, as others have", runs)
    capabilities: list[list[str] | None] = [None] * len(pairs)
    if job.annotations is not None or all(reference.has("capability") for _, reference in pairs):
        capabilities = [reference.texts("capability") for _, reference in pairs]
    return [_Graded(*each) for each in zip(grades, capabilities, strict=True)]


def _mmvet_metrics(answers: Sequence[_Graded], job: ScoringJob) -> Metrics:
    capabilities = [each.capabilities for each in answers if each.capabilities is not None]
    return dict(mmvet_scores([each.grades for each in answers], capabilities or None))


def _grades(entry: Entry) -> list[float]:
    grades = entry.get("score", expected="a list of grades, one of each run")
    if isinstance(grades, str):
        grades = literal(grades, list) or [entry.number("score")]
    grades = grades if isinstance(grades, list) else [grades]
    if not grades or not all(is_number(grade) and 0 <= grade <= 1 for grade in grades):
        raise entry.error(("score",), "grades of 0 to 1, one of each run of the judge", grades)
    return [float(grade) for grade in grades]


# Scores in percent: the mean of each run of the judge and of all runs, and per capability.
MMVET = Scorer(
    layout=(
        'MODEL_grades.jsonl, records {"id", "score": [grade of each run]}; or the official object '
        "of these by id"
    ),
    annotations='the official mm-vet.json, {id: {"capability": [..]}}, for scores by capability',
    read=_graded_answers,
    metrics=_mmvet_metrics,
    name=lambda path: path.stem.removesuffix("_grades"),
)
