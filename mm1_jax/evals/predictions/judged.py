"""Replies that a judge graded: LLaVA-Bench (in the wild) and MM-Vet."""

import re
from collections.abc import Mapping
from pathlib import Path

from mm1_jax.evals.metrics.answers import mean
from mm1_jax.evals.metrics.judged import llava_bench_scores, mmvet_scores, review_grades
from mm1_jax.evals.predictions.base import Metrics, Scorer, ScoringJob
from mm1_jax.evals.predictions.records import Record, by_key, paired, read_records

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
        for said, asked in paired(read_records(path), job.annotations, "question_id"):
            grades.setdefault(asked.text("category"), []).append(_pair_of_grades(said))
        return dict(llava_bench_scores(grades))

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
        if not (isinstance(grades, list) and len(grades) == 2 and all(map(_is_number, grades))):
            raise record.error(("tuple",), "two grades", grades)
        return float(grades[0]), float(grades[1])
    try:
        return review_grades(record.text("content", expected="the review, a text"))
    except ValueError as error:
        raise ValueError(f"{record.where}, field 'content': {error}") from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
        records = read_records(path)
        grades = [_grades(record) for record in records]
        for record, runs in zip(records, grades, strict=True):
            if len(runs) != len(grades[0]):
                raise record.error(("score",), f"{len(grades[0])} grades, as others have", runs)
        capabilities = None
        if job.annotations is not None:
            by_id = by_key(read_records(job.annotations), "id")
            capabilities = [_capabilities(record, by_id, job.annotations) for record in records]
        elif all(record.has("capability") for record in records):
            capabilities = [record.texts("capability") for record in records]
        return dict(mmvet_scores(grades, capabilities))


def _grades(record: Record) -> list[float]:
    grades = record.get("score", expected="a list of grades, one of each run")
    grades = grades if isinstance(grades, list) else [grades]
    if not grades or not all(_is_number(grade) and 0 <= grade <= 1 for grade in grades):
        raise record.error(("score",), "grades of 0 to 1, one of each run of the judge", grades)
    return [float(grade) for grade in grades]


def _capabilities(record: Record, by_id: Mapping[str, Record], path: Path) -> list[str]:
    key = record.key("id")
    if key not in by_id:
        raise ValueError(f"{record.where}: {path} has no question {key!r}; give the official file")
    return by_id[key].texts("capability")
