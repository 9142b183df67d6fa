"""Multiple-choice questions: ScienceQA, MMBench, SEED-Bench, MMMU, MathVista."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import ascii_uppercase

from mm1_jax.evals.metrics import mathvista, mmmu
from mm1_jax.evals.metrics.answers import mean
from mm1_jax.evals.metrics.multiple_choice import (
    MMBENCH_ROUND,
    NOTHING,
    SCIENCEQA_LETTERS,
    SEED_TYPES,
    mmbench_scores,
    option_letter,
    scienceqa_letter,
    seed_scores,
)
from mm1_jax.evals.predictions.base import Metrics, Scorer, ScoringJob
from mm1_jax.evals.predictions.pairing import match
from mm1_jax.evals.predictions.questions import reply
from mm1_jax.evals.predictions.records import Record, is_number, literal, read_records

_MMMU_TYPES = ("multiple-choice", "open", "short-answer")
# The number of decimals that a double holds.
_MOST_DECIMALS = 17


class ScienceQAScorer(Scorer):
    """Accuracies as percentages, of all questions and of those with an image.

    Of the official problems, the questions asked are those of the split that was answered, or of it
    those with an image if no other was answered. All of them need a prediction.
    """

    layout = (
        'records {"question_id", "prediction", "answer": letter, "n_choices", "has_image"}; or '
        '{"question_id", "text" or "prediction"} with annotations'
    )
    annotations = (
        'the official problems.json, {id: {"choices", "answer": index, "image", "split"}}; it may '
        "hold other splits"
    )

    def score_file(self, path: Path, job: ScoringJob) -> Metrics:
        if job.annotations is None:
            pairs = job.paired(path, *_PROBLEM_IDS)
        else:
            predictions, problems = read_records(path), read_records(job.annotations)
            asked = _asked(predictions, problems)
            found = match(path, predictions, job.annotations, asked, _PROBLEM_IDS)
            pairs = job.accept(path, found)
        correct, with_image = [], []
        for said, asked in pairs:
            num_choices, answer, has_image = _problem(asked, job.annotations is not None)
            correct.append(scienceqa_letter(reply(said, asked), num_choices) == answer)
            with_image.append(has_image)
        scores: Metrics = {"n": len(correct), "acc": 100 * mean(correct)}
        shown = [verdict for verdict, image in zip(correct, with_image, strict=True) if image]
        if shown:
            scores |= {"n_img": len(shown), "img_acc": 100 * mean(shown)}
        return scores


_PROBLEM_IDS = ("question_id", "id")


def _asked(predictions: Sequence[Record], problems: Sequence[Record]) -> Sequence[Record]:
    """The problems of the split that was answered, and of it those with an image if only these."""
    answered = {record.key(*_PROBLEM_IDS) for record in predictions if record.has(*_PROBLEM_IDS)}
    known = [record for record in problems if record.key(*_PROBLEM_IDS) in answered]
    splits = {str(record.values.get("split")) for record in known}
    asked = [record for record in problems if str(record.values.get("split")) in splits]
    if known and all(map(_shows_image, known)):
        return [record for record in asked if _shows_image(record)]
    return asked if known else problems


def _shows_image(problem: Record) -> bool:
    return problem.has("image") and problem.values["image"] != ""


def _problem(asked: Record, is_official: bool) -> tuple[int, str, bool]:
    """The number of choices, the right letter, and whether the question shows an image."""
    if is_official:
        num_choices, number = len(asked.texts("choices")), asked.integer("answer")
        if not 0 <= number < num_choices <= len(SCIENCEQA_LETTERS):
            raise asked.error(("answer",), f"the number of one of {num_choices} choices", number)
        return num_choices, SCIENCEQA_LETTERS[number], _shows_image(asked)
    num_choices = asked.integer("n_choices")
    if not 2 <= num_choices <= len(SCIENCEQA_LETTERS):
        raise asked.error(("n_choices",), f"2 to {len(SCIENCEQA_LETTERS)}", num_choices)
    answer = _right_letter(asked, SCIENCEQA_LETTERS[:num_choices])
    asked.get("has_image", expected="true or false")
    return num_choices, answer, asked.truth("has_image")


def lettered_options(record: Record) -> dict[str, str] | None:
    """The options by letter, from one field or from a field for each letter; None without any."""
    if "options" in record.values:
        options = record.values["options"]
        if isinstance(options, str):
            options = literal(options, dict)
        if not isinstance(options, dict) or not options:
            expected = "an object of options by letter"
            raise record.error(("options",), expected, record.values["options"])
        return {str(letter): str(text) for letter, text in options.items()}
    found = {}
    for letter in ascii_uppercase:
        names = (letter, f"choice_{letter.lower()}")
        if not any(name in record.values for name in names):
            break
        # An empty cell, or pandas' mark for one, is no option.
        if record.has(*names) and (text := str(record.get(*names, expected=""))) not in NOTHING:
            found[letter] = text
    return found or None


def _right_letter(asked: Record, letters: Iterable[str]) -> str:
    answer = asked.text("answer")
    if answer not in {*letters}:
        raise asked.error(("answer",), f"one of {', '.join(letters)}", answer)
    return answer


def _chosen(pairs: Sequence[tuple[Record, Record]]) -> list[bool]:
    """Tells for each reply if it chooses the right option."""
    right = {asked.text("answer") for _, asked in pairs}
    last = max((letter for letter in right if letter in {*ascii_uppercase}), default="A")
    # Where no file has the options, at least the official four.
    letters = ascii_uppercase[: max(4, ascii_uppercase.index(last) + 1)]
    verdicts = []
    for said, asked in pairs:
        options = lettered_options(asked) or lettered_options(said) or dict.fromkeys(letters, "")
        verdicts.append(option_letter(reply(said, asked), options) == _right_letter(asked, options))
    return verdicts


class MMBenchScorer(Scorer):
    """Circular and plain accuracy, as percentages."""

    layout = (
        'records {"index", "options": {letter: text} or "A" .. "D", "prediction", "answer": '
        "letter}, all rounds of each question, whose indices differ by millions; .tsv as well"
    )
    annotations = 'records {"index", "answer"}, where the predictions lack the answers'

    def score_file(self, path: Path, job: ScoringJob) -> Metrics:
        pairs = job.paired(path, "index")
        indices = [asked.integer("index") for _, asked in pairs]
        rounds: dict[int, set[int]] = {}
        for index in indices:
            rounds.setdefault(index % MMBENCH_ROUND, set()).add(index // MMBENCH_ROUND)
        for question, found in rounds.items():
            if found != {*range(len(found))}:
                raise ValueError(
                    f"{path}: question {question} has the rounds {sorted(found)}, and lacks one "
                    f"before the last; the indices of its rounds are {question}, "
                    f"{question + MMBENCH_ROUND} and so on"
                )
        scores = mmbench_scores(dict(zip(indices, _chosen(pairs), strict=True)))
        if scores["n_rows"] == scores["n_questions"]:
            job.notes.append(
                f"{path}: each question occurs in one round alone, so circular_acc is vanilla_acc"
            )
        return dict(scores)


class SeedScorer(Scorer):
    """SEED-Bench, percentages: of all questions, of those on images and on videos, and by type."""

    layout = (
        'records {"question_id", "question_type_id", "prediction", "answer": letter}; or '
        '{"question_id", "prediction" or "text"} with annotations'
    )
    annotations = 'the official SEED-Bench.json, or its "questions" of the kinds that were asked'

    def score_file(self, path: Path, job: ScoringJob) -> Metrics:
        # The official file has question 49914 twice, and the official score counts both.
        pairs = job.paired(path, "question_id", may_repeat=True)
        types = [asked.integer("question_type_id") for _, asked in pairs]
        for (_, asked), number in zip(pairs, types, strict=True):
            if number not in SEED_TYPES:
                raise asked.error(("question_type_id",), "1 to 12", number)
        return dict(seed_scores(_chosen(pairs), types))


class MmmuScorer(Scorer):
    """MMMU, as shares of 1, over all questions and by subject.

    A reply that names no option gets one at random, which is a function of the question's id; where
    a record says what the official code drew (`random_choice`, `official_parsed`), that one.
    `overall_own_choice` does not look at such records. `n_random` counts these replies.

    The official answers by id have no options. With these, as in the official `main_eval_only.py`,
    a reply to a question with options is the letter itself, and nothing is drawn.
    """

    layout = (
        'records {"id", "question_type", "answer", "index2ans": {letter: option}, "response"}, and '
        'optionally "category", "random_choice" with "official_parsed"; or {id: response} with '
        "annotations, parsed to letters unless these have index2ans"
    )
    annotations = 'the official answer_dict_val.json, {id: {"question_type", "ground_truth"}}'

    def score_file(self, path: Path, job: ScoringJob) -> Metrics:
        recorded, own, by_subject = [], [], dict[str, list[bool]]()
        n_random = n_unparsed = 0
        for said, asked in job.paired(path, "id"):
            text = said.text("response", "prediction", expected="the model's reply, a text")
            n_unparsed += _is_choice(asked) and not asked.has("index2ans") and len(text) != 1
            verdict, own_verdict, is_random = _mmmu_verdicts(said, asked, text)
            recorded.append(verdict)
            own.append(own_verdict)
            by_subject.setdefault(_subject(asked), []).append(verdict)
            n_random += is_random
        if n_unparsed:
            job.notes.append(
                f"{path}: {n_unparsed} replies to questions with options are not a letter, and "
                "count as wrong, since the annotations have no options (index2ans) to read them by"
            )
        return {
            "n": len(recorded),
            "overall": mean(recorded),
            "overall_own_choice": mean(own),
            "n_random": n_random,
            "per_subject": {name: mean(by_subject[name]) for name in sorted(by_subject)},
        }


def _is_choice(asked: Record) -> bool:
    kind = asked.text("question_type")
    if kind not in _MMMU_TYPES:
        raise asked.error(("question_type",), f"one of {', '.join(_MMMU_TYPES)}", kind)
    return kind == "multiple-choice"


def _mmmu_verdicts(said: Record, asked: Record, text: str) -> tuple[bool, bool, bool]:
    """Right by the recorded draw, right by our own, and whether there is anything to draw."""
    references = asked.texts("answer", "ground_truth", expected="a text, or a list of them")
    if not _is_choice(asked):
        right = mmmu.open_correct(mmmu.open_answers(text), references)
        return right, right, False
    if not asked.has("index2ans"):
        return text in references, text in references, False
    options = asked.values["index2ans"]
    if isinstance(options, str):
        options = literal(options, dict)
    if not isinstance(options, dict) or not options:
        expected = "an object of options by letter"
        raise asked.error(("index2ans",), expected, asked.values["index2ans"])
    options = {str(letter): str(option) for letter, option in options.items()}
    if not {*references} & {*options}:
        raise asked.error(("answer", "ground_truth"), f"one of {', '.join(options)}", references)
    option = mmmu.chosen_option(text, options)
    is_marked = said.truth("random_choice")
    own = option or mmmu.chance_option(asked.key("id"), list(options))
    drawn = said.text("official_parsed") if is_marked else own
    return drawn in references, own in references, is_marked or option is None


def _subject(record: Record) -> str:
    if record.has("category"):
        return record.text("category")
    found = re.fullmatch(r"[a-z]+_(.+)_\d+", record.key("id"))
    return found[1] if found else "unknown"


class MathVistaScorer(Scorer):
    """MathVista, accuracy as a percentage; `n_by_rule` counts answers that rules extracted."""

    layout = (
        'records {"pid", "answer", "answer_type", "choices", "precision", "response", '
        '"extraction"}, or the official object of these by pid; where there is none, rules extract'
    )
    annotations = (
        'the official testmini.json: {pid: {"answer", "answer_type", "choices", "precision"}}'
    )

    def score_file(self, path: Path, job: ScoringJob) -> Metrics:
        correct, n_by_rule = [], 0
        for said, asked in job.paired(path, "pid", "id"):
            choices = asked.texts("choices") if asked.values.get("choices") else None
            answer_type = asked.text("answer_type")
            if said.has("extraction"):
                extraction = _text_or_number(said, "extraction")
            else:
                n_by_rule += 1
                extraction = mathvista.extracted_by_rule(
                    said.text("response"), choices, answer_type
                )
            answer = mathvista.normalised_answer(
                extraction,
                choices=choices,
                answer_type=answer_type,
                precision=precision_of(asked),
            )
            correct.append(answer == _text_or_number(asked, "answer"))
        if n_by_rule:
            job.notes.append(
                f"{path}: rules extracted {n_by_rule} of {len(correct)} answers, where the "
                "official scores take a language model"
            )
        return {
            "n": len(correct),
            "accuracy": 100 * mean(correct),
            "correct": sum(correct),
            "n_by_rule": n_by_rule,
        }


def _text_or_number(record: Record, name: str) -> str:
    value = record.get(name, expected="a text or a number")
    if not isinstance(value, str) and not is_number(value):
        raise record.error((name,), "a text or a number", value)
    return str(value)


def precision_of(record: Record) -> int | None:
    """Returns the number of decimals of a reference; None if it has none."""
    if not record.has("precision") or record.values["precision"] == "":
        return None
    precision = record.number("precision")
    if not 0 <= precision <= _MOST_DECIMALS:
        raise record.error(("precision",), f"0 to {_MOST_DECIMALS} decimals", precision)
    return int(precision)
