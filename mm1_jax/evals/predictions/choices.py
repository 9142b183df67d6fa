"""Questions with options by letter: ScienceQA, MMBench and SEED-Bench."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from string import ascii_uppercase

from mm1_jax.evals.answers import TextAnswer
from mm1_jax.evals.predictions.entries import Entry, literal, read_entries
from mm1_jax.evals.predictions.pairing import match
from mm1_jax.evals.predictions.questions import reply
from mm1_jax.evals.predictions.scorer import Metrics, Scorer, ScoringJob, number_and_scores
from mm1_jax.evals.scoring.items import Item, scores
from mm1_jax.evals.scoring.multiple_choice import (
    MMBENCH_ROUND,
    NOTHING,
    SCIENCEQA_LETTERS,
    SEED_TYPES,
    mmbench,
    scienceqa,
    seed,
)

_PROBLEM_IDS = ("question_id", "id")


def _scienceqa_items(path: Path, job: ScoringJob) -> list[Item]:
    """Returns the items of the questions that were asked; each needs a prediction.

    With the official problems, these are all questions of the split that was answered, or only
    those with an image if no others were answered.
    """
    if job.annotations is None:
        pairs = job.paired(path, *_PROBLEM_IDS)
    else:
        predictions, problems = read_entries(path), read_entries(job.annotations)
        references = _problems_asked(predictions, problems)
        found = match(path, predictions, job.annotations, references, _PROBLEM_IDS)
        pairs = job.accept(path, found)
    items = []
    for prediction, reference in pairs:
        num_choices, answer, has_image = _problem(reference, job.annotations is not None)
        record = {
            "options": dict.fromkeys(SCIENCEQA_LETTERS[:num_choices], ""),
            "answer": answer,
            "images": (None,) if has_image else (),
        }
        items.append(Item(record, TextAnswer(reply(prediction, reference))))
    return items


def _scienceqa_metrics(items: Sequence[Item], job: ScoringJob) -> Metrics:
    found = scores(scienceqa(items))
    metrics: Metrics = {"n": len(items), "acc": found["acc"]}
    if "img_acc" in found:
        num_shown = sum(bool(item.record["images"]) for item in items)
        metrics |= {"n_img": num_shown, "img_acc": found["img_acc"]}
    return metrics


def _problems_asked(predictions: Sequence[Entry], problems: Sequence[Entry]) -> Sequence[Entry]:
    """Returns the problems of the split that was answered.

    Returns only those with an image if no others were answered.
    """
    answered = {entry.key(*_PROBLEM_IDS) for entry in predictions if entry.has(*_PROBLEM_IDS)}
    known = [entry for entry in problems if entry.key(*_PROBLEM_IDS) in answered]
    splits = {str(entry.values.get("split")) for entry in known}
    asked = [entry for entry in problems if str(entry.values.get("split")) in splits]
    if known and all(map(_shows_image, known)):
        return [entry for entry in asked if _shows_image(entry)]
    return asked if known else problems


def _shows_image(problem: Entry) -> bool:
    return problem.has("image") and problem.values["image"] != ""


def _problem(reference: Entry, is_official: bool) -> tuple[int, str, bool]:
    """Returns the number of choices, the right letter, and whether the question has an image."""
    if is_official:
        num_choices, number = len(reference.texts("choices")), reference.integer("answer")
        if not 0 <= number < num_choices <= len(SCIENCEQA_LETTERS):
            raise reference.error(
                ("answer",), f"the number of one of {num_choices} choices", number
            )
        return num_choices, SCIENCEQA_LETTERS[number], _shows_image(reference)
    num_choices = reference.integer("n_choices")
    if not 2 <= num_choices <= len(SCIENCEQA_LETTERS):
        raise reference.error(("n_choices",), f"2 to {len(SCIENCEQA_LETTERS)}", num_choices)
    answer = _right_letter(reference, SCIENCEQA_LETTERS[:num_choices])
    reference.get("has_image", expected="true or false")
    return num_choices, answer, reference.boolean("has_image")


SCIENCEQA = Scorer(
    layout=(
        'records {"question_id", "prediction", "answer": letter, "n_choices", "has_image"}; or '
        '{"question_id", "text" or "prediction"} with annotations'
    ),
    annotations=(
        'the official problems.json, {id: {"choices", "answer": index, "image", "split"}}; it may '
        "hold other splits"
    ),
    read=_scienceqa_items,
    metrics=_scienceqa_metrics,
)


def lettered_options(entry: Entry) -> dict[str, str] | None:
    """Returns the options by letter, from one field or a field per letter; None without options."""
    if "options" in entry.values:
        options = entry.values["options"]
        if isinstance(options, str):
            options = literal(options, dict)
        if not isinstance(options, dict) or not options:
            expected = "an object of options by letter"
            raise entry.error(("options",), expected, entry.values["options"])
        return {str(letter): str(text) for letter, text in options.items()}
    found = {}
    for letter in ascii_uppercase:
        names = (letter, f"choice_{letter.lower()}")
        if not any(name in entry.values for name in names):
            break
        # An empty cell, or the text that pandas writes for it, is not an option.
        if entry.has(*names) and (text := str(entry.get(*names, expected=""))) not in NOTHING:
            found[letter] = text
    return found or None


def _right_letter(reference: Entry, letters: Iterable[str]) -> str:
    answer = reference.text("answer")
    if answer not in {*letters}:
        raise reference.error(("answer",), f"one of {', '.join(letters)}", answer)
    return answer


def _option_records(pairs: Sequence[tuple[Entry, Entry]]) -> list[dict[str, object]]:
    """Returns the options and the right letter of each question."""
    right = {reference.text("answer") for _, reference in pairs}
    last = max((letter for letter in right if letter in {*ascii_uppercase}), default="A")
    # If no file has the options, assume the official four or as many as the right letters need.
    letters = ascii_uppercase[: max(4, ascii_uppercase.index(last) + 1)]
    records = []
    for prediction, reference in pairs:
        options = (
            lettered_options(reference)
            or lettered_options(prediction)
            or dict.fromkeys(letters, "")
        )
        records.append({"options": options, "answer": _right_letter(reference, options)})
    return records


def _mmbench_items(path: Path, job: ScoringJob) -> list[Item]:
    pairs = job.paired(path, "index")
    indices = [reference.integer("index") for _, reference in pairs]
    rounds: dict[int, set[int]] = {}
    for index in indices:
        rounds.setdefault(index % MMBENCH_ROUND, set()).add(index // MMBENCH_ROUND)
    for question, found in rounds.items():
        if found != {*range(len(found))}:
            raise ValueError(
                f"{path}: question {question} has the rounds {sorted(found)}, so one before the "
                f"last is missing; the indices of its rounds are {question}, "
                f"{question + MMBENCH_ROUND} and so on"
            )
    if len(rounds) == len(indices):
        job.notes.append(
            f"{path}: each question occurs in only one round, so circular_acc equals vanilla_acc"
        )
    return [
        Item(record, TextAnswer(reply(prediction, reference)), str(index))
        for record, (prediction, reference), index in zip(
            _option_records(pairs), pairs, indices, strict=True
        )
    ]


def _mmbench_metrics(items: Sequence[Item], job: ScoringJob) -> Metrics:
    scored = mmbench(items)
    assert scored.units is not None
    return {"n_questions": len({*scored.units}), "n_rows": len(items), **scores(scored)}


MMBENCH = Scorer(
    layout=(
        'records {"index", "options": {letter: text} or "A" .. "D", "prediction", "answer": '
        "letter}, all rounds of each question, whose indices differ by millions; .tsv as well"
    ),
    annotations='records {"index", "answer"}, if the predictions lack the answers',
    read=_mmbench_items,
    metrics=_mmbench_metrics,
)


def _seed_items(path: Path, job: ScoringJob) -> list[Item]:
    # The official file contains question 49914 twice, and the official score counts both.
    pairs = job.paired(path, "question_id", may_repeat=True)
    types = [reference.integer("question_type_id") for _, reference in pairs]
    for (_, reference), number in zip(pairs, types, strict=True):
        if number not in SEED_TYPES:
            raise reference.error(("question_type_id",), "1 to 12", number)
    return [
        Item({**record, "kind": kind}, TextAnswer(reply(prediction, reference)))
        for record, (prediction, reference), kind in zip(
            _option_records(pairs), pairs, types, strict=True
        )
    ]


SEED = Scorer(
    layout=(
        'records {"question_id", "question_type_id", "prediction", "answer": letter}; or '
        '{"question_id", "prediction" or "text"} with annotations'
    ),
    annotations='the official SEED-Bench.json, or its "questions" of the types that were asked',
    read=_seed_items,
    metrics=number_and_scores(seed),
)
