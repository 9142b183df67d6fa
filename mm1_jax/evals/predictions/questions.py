"""Questions with short answers: VQAv2, TextVQA, VizWiz, OK-VQA, GQA, documents and charts."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mm1_jax.evals.answers import TextAnswer
from mm1_jax.evals.predictions.entries import Entry, is_missing
from mm1_jax.evals.predictions.scorer import Scorer, ScoringJob, number_and_scores
from mm1_jax.evals.scoring.items import Item, Scoring
from mm1_jax.evals.scoring.short_answers import charts, documents, gqa
from mm1_jax.evals.scoring.vqa import (
    Rule,
    evalai,
    lowered,
    official_accuracy,
    okvqa_accuracy,
    processed_accuracy,
    vizwiz_accuracy,
    vqa_accuracy,
)

_IDS = ("question_id", "questionId", "id")
# A picture of VizWiz has one question, which the official files identify by the picture.
_VIZWIZ_IDS = ("question_id", "questionId", "image", "id")
_MISSING_ID = "acc_official_missing_answer_id"


def reply(prediction: Entry, reference: Entry, *others: str) -> str:
    """Returns the model's answer; `others` are more names of it in a file without references.

    A null field is an error even if a later one has a text, which may be a reference.
    """
    names = ("prediction",) if prediction is reference else ("prediction", *others, "text")
    name = next((name for name in names if name in prediction.values), names[0])
    expected = "the model's answer, a text"
    if name in prediction.values and is_missing(prediction.values[name]):
        raise prediction.error((name,), f'{expected}, or "" for an empty answer', None)
    return prediction.text(*names, expected=expected)


def vqa_items(path: Path, job: ScoringJob, ids: Sequence[str] = _IDS) -> list[Item]:
    """Returns items with the people's answers, and with other fields of these (`remarks`)."""
    expected = "the answers of the people asked: texts, or objects with an 'answer'"
    items = []
    for prediction, reference in job.paired(path, *ids):
        answer = TextAnswer(reply(prediction, reference, "answer"))
        record: dict[str, Any] = {"answers": reference.texts("answers", expected=expected)}
        people = reference.values["answers"]
        if isinstance(people, list):
            known = [one if isinstance(one, dict) else {} for one in people]
            record["raw_answers"] = [one.get("raw_answer") for one in known]
            if known == people:
                record["remarks"] = [_remarks(one) for one in known]
        if prediction.has(_MISSING_ID):
            record[_MISSING_ID] = prediction.number(_MISSING_ID)
        items.append(Item(record, answer))
    return items


def _remarks(person: Mapping[str, Any]) -> list[Any]:
    others = sorted((name, str(value)) for name, value in person.items() if name[:6] != "answer")
    return [*others, str(person.get("answer_confidence"))]


def _official_lower(answer: str, answers: Sequence[str]) -> float:
    return official_accuracy(lowered(answer), answers)


def _official_processed(answer: str, answers: Sequence[str]) -> float:
    return official_accuracy(evalai(answer), answers)


_VQA_RULES: Mapping[str, Rule] = {
    "acc_official": official_accuracy,
    "acc_official_lower": _official_lower,
    "acc_processed": processed_accuracy,
}
_TEXTVQA_RULES: Mapping[str, Rule] = {
    "acc_official_raw": official_accuracy,
    "acc_official_lower": _official_lower,
    "acc_official_processed": _official_processed,
    "acc_m4c": processed_accuracy,
}
_OFFICIAL_FILE = 'the official file: "annotations" or "data" with {"question_id", "answers"}'


def _vqa_scorer(
    scoring: Scoring, ids: Sequence[str] = _IDS, annotations: str = _OFFICIAL_FILE
) -> Scorer:
    return Scorer(
        layout=(
            'records {"question_id", "prediction", "answers": [text or {"answer"}, ..]}; or '
            '{"question_id" (VizWiz: "image"), "answer"}, the official results, with annotations'
        ),
        annotations=annotations,
        read=functools.partial(vqa_items, ids=ids),
        metrics=number_and_scores(scoring),
    )


VQAV2 = _vqa_scorer(functools.partial(vqa_accuracy, rules=_VQA_RULES))
TEXTVQA = _vqa_scorer(functools.partial(vqa_accuracy, rules=_TEXTVQA_RULES))
VIZWIZ = _vqa_scorer(functools.partial(vizwiz_accuracy, rules=_VQA_RULES), _VIZWIZ_IDS)
OKVQA = _vqa_scorer(
    okvqa_accuracy,
    annotations=(
        'the official file, "annotations" with {"question_id", "answers": [{"answer", '
        '"raw_answer"}]}: the stems of words are learned from it'
    ),
)


def short_items(path: Path, job: ScoringJob) -> list[Item]:
    """Returns items with one or several references each."""
    expected = "the reference, or a list"
    return [
        Item(
            {"answers": reference.texts("answers", "answer", "label", expected=expected)},
            TextAnswer(reply(prediction, reference, "answer")),
        )
        for prediction, reference in job.paired(path, *_IDS)
    ]


def _short_answer_scorer(scoring: Scoring) -> Scorer:
    return Scorer(
        layout=(
            'records {"question_id", "prediction", "answer" or "answers" or "label": the reference '
            'or references}; or {"questionId" or "question_id", "prediction" or "answer"} with '
            "annotations"
        ),
        annotations=(
            'records {"question_id" or "questionId", "answer" or "answers" or "label"}, or the '
            "official object of these by id"
        ),
        read=short_items,
        metrics=number_and_scores(scoring),
    )


GQA = _short_answer_scorer(gqa)
DOCUMENTS = _short_answer_scorer(documents)
CHARTS = _short_answer_scorer(charts)
