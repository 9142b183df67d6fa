"""Exam questions, with options or open: MMMU and MathVista."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm1_jax.evals.answers import TextAnswer
from mm1_jax.evals.predictions.entries import Entry, is_number, literal
from mm1_jax.evals.predictions.scorer import Metrics, Scorer, ScoringJob
from mm1_jax.evals.scoring.items import Item, scores
from mm1_jax.evals.scoring.mathvista import extracted_by_rule, mathvista
from mm1_jax.evals.scoring.mmmu import mmmu

_MMMU_TYPES = ("multiple-choice", "open", "short-answer")
# The number of decimals of a double.
_MOST_DECIMALS = 17


def _mmmu_items(path: Path, job: ScoringJob) -> list[Item]:
    items, num_unparsed = [], 0
    for prediction, reference in job.paired(path, "id"):
        text = prediction.text("response", "prediction", expected="the model's reply, a text")
        item = Item(_mmmu_record(prediction, reference), TextAnswer(text), reference.key("id"))
        num_unparsed += _is_parsed(item) and len(text) != 1
        items.append(item)
    if num_unparsed:
        job.notes.append(
            f"{path}: {num_unparsed} replies to questions with options are not a letter and count "
            "as wrong, since the annotations have no options (index2ans) to parse them with"
        )
    return items


def _is_parsed(item: Item) -> bool:
    return item.record["is_choice"] and item.record["options"] is None


def _mmmu_record(prediction: Entry, reference: Entry) -> dict[str, Any]:
    kind = reference.text("question_type")
    if kind not in _MMMU_TYPES:
        raise reference.error(("question_type",), f"one of {', '.join(_MMMU_TYPES)}", kind)
    expected = "a text, or a list of them"
    record = {
        "answers": reference.texts("answer", "ground_truth", expected=expected),
        "is_choice": kind == "multiple-choice",
        "options": None,
        "subject": _subject(reference),
    }
    if not record["is_choice"] or not reference.has("index2ans"):
        return record
    options = reference.values["index2ans"]
    if isinstance(options, str):
        options = literal(options, dict)
    if not isinstance(options, dict) or not options:
        expected = "an object of options by letter"
        raise reference.error(("index2ans",), expected, reference.values["index2ans"])
    options = {str(letter): str(option) for letter, option in options.items()}
    if not {*record["answers"]} & {*options}:
        expected = f"one of {', '.join(options)}"
        raise reference.error(("answer", "ground_truth"), expected, record["answers"])
    drawn = prediction.text("official_parsed") if prediction.boolean("random_choice") else None
    return record | {"options": options, "drawn": drawn}


def _subject(entry: Entry) -> str:
    if entry.has("category"):
        return entry.text("category")
    found = re.fullmatch(r"[a-z]+_(.+)_\d+", entry.key("id"))
    return found[1] if found else "unknown"


def _mmmu_metrics(items: Sequence[Item], job: ScoringJob) -> Metrics:
    scored = mmmu(items)
    found = scores(scored)
    by_subject = {
        name.removeprefix("subject_"): value
        for name, value in found.items()
        if name.startswith("subject_")
    }
    return {
        "n": len(items),
        "overall": found["overall"],
        "overall_own_choice": found["overall_own_choice"],
        "n_random": int(scored.columns["random"].sum()),
        "per_subject": by_subject,
    }


# A reply that names no option gets one drawn by the question's id, or the one that the official
# code drew if the entry has it (`random_choice`, `official_parsed`). The official answers by id
# have no options: with them, as in the official `main_eval_only.py`, a reply to a question with
# options must be a letter, and nothing is drawn.
MMMU = Scorer(
    layout=(
        'records {"id", "question_type", "answer", "index2ans": {letter: option}, "response"}, and '
        'optionally "category", "random_choice" with "official_parsed"; or {id: response} with '
        "annotations, parsed to letters unless these have index2ans"
    ),
    annotations='the official answer_dict_val.json, {id: {"question_type", "ground_truth"}}',
    read=_mmmu_items,
    metrics=_mmmu_metrics,
)


def _mathvista_items(path: Path, job: ScoringJob) -> list[Item]:
    items, num_by_rule = [], 0
    for prediction, reference in job.paired(path, "pid", "id"):
        choices = reference.texts("choices") if reference.values.get("choices") else None
        answer_type = reference.text("answer_type")
        is_by_rule = not prediction.has("extraction")
        num_by_rule += is_by_rule
        if is_by_rule:
            extraction = extracted_by_rule(prediction.text("response"), choices, answer_type)
        else:
            extraction = _text_or_number(prediction, "extraction")
        record = {
            "choices": choices,
            "answer_type": answer_type,
            "precision": precision_of(reference),
            "answers": [_text_or_number(reference, "answer")],
            "extraction": extraction,
            "is_by_rule": is_by_rule,
        }
        items.append(Item(record, TextAnswer(extraction)))
    if num_by_rule:
        job.notes.append(
            f"{path}: rules extracted {num_by_rule} of {len(items)} answers; for official scores, "
            "a language model extracts them"
        )
    return items


def _mathvista_metrics(items: Sequence[Item], job: ScoringJob) -> Metrics:
    scored = mathvista(items)
    return {
        "n": len(items),
        **scores(scored),
        "correct": sum(map(bool, scored.correct)),
        "n_by_rule": sum(item.record["is_by_rule"] for item in items),
    }


def _text_or_number(entry: Entry, name: str) -> str:
    value = entry.get(name, expected="a text or a number")
    if not isinstance(value, str) and not is_number(value):
        raise entry.error((name,), "a text or a number", value)
    return str(value)


def precision_of(entry: Entry) -> int | None:
    """Returns the number of decimals of a reference; None if it has none."""
    if not entry.has("precision") or entry.values["precision"] == "":
        return None
    precision = entry.number("precision")
    if not 0 <= precision <= _MOST_DECIMALS:
        raise entry.error(("precision",), f"0 to {_MOST_DECIMALS} decimals", precision)
    return int(precision)


MATHVISTA = Scorer(
    layout=(
        'records {"pid", "answer", "answer_type", "choices", "precision", "response", '
        '"extraction"}, or the official object of these by pid; without "extraction", rules extract'
    ),
    annotations=(
        'the official testmini.json: {pid: {"answer", "answer_type", "choices", "precision"}}'
    ),
    read=_mathvista_items,
    metrics=_mathvista_metrics,
)
