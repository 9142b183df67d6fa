"""Multiple-choice questions: ScienceQA, MMBench, SEED-Bench, MMMU, MathVista."""

import re
from collections.abc import Mapping
from pathlib import Path

from mm1_jax.evals.metrics import mathvista, mmmu
from mm1_jax.evals.metrics.answers import mean
from mm1_jax.evals.metrics.multiple_choice import (
    SCIENCEQA_LETTERS,
    mmbench_scores,
    option_letter,
    scienceqa_letter,
    seed_scores,
)
from mm1_jax.evals.predictions.base import Metrics, Scorer, ScoringJob
from mm1_jax.evals.predictions.questions import reply
from mm1_jax.evals.predictions.records import Record, by_key, paired, read_records


class ScienceQAScorer(Scorer):
    """Accuracies as percentages, of all questions and of those with an image."""

    layout = (
        'records {"question_id", "prediction", "answer": letter, "n_choices", "has_image"}; or '
        '{"question_id", "text" or "prediction"} with annotations'
    )
    annotations = (
        'the official problems.json, {id: {"choices", "answer": index, "image"}}; it may hold '
        "other splits"
    )

    def score_file(self, path: Path, job: ScoringJob) -> Metrics:
        correct, with_image = [], []
        problems = by_key(read_records(job.annotations), "id") if job.annotations else None
        for said in read_records(path):
            asked = said if problems is None else _problem(said, problems, job.annotations)
            if problems is None:
                num_choices, answer = said.integer("n_choices"), said.text("answer")
                has_image = bool(said.get("has_image", expected="true or false"))
            else:
                num_choices = len(asked.texts("choices"))
                answer = SCIENCEQA_LETTERS[asked.integer("answer")]
                has_image = bool(asked.values.get("image"))
            correct.append(scienceqa_letter(reply(said, asked), num_choices) == answer)
            with_image.append(has_image)
        scores: Metrics = {"n": len(correct), "acc": 100 * mean(correct)}
        shown = [verdict for verdict, image in zip(correct, with_image, strict=True) if image]
        if shown:
            scores |= {"n_img": len(shown), "img_acc": 100 * mean(shown)}
        return scores


def _problem(said: Record, problems: Mapping[str, Record], path: Path | None) -> Record:
    key = said.key("question_id", "id")
    if key not in problems:
        raise ValueError(f"{said.where}: {path} has no problem {key!r}; give the official file")
    return problems[key]


def _options(record: Record) -> dict[str, str]:
    """The options by letter, from one field or from one for each letter."""
    options = record.values.get("options")
    if isinstance(options, dict):
        return {str(letter): str(text) for letter, text in options.items()}
    found = {
        letter: str(record.values[name])
        for letter in "ABCDEFGH"
        for name in (letter, f"choice_{letter.lower()}")
        if record.has(name) and str(record.values[name]) not in ("", "nan")
    }
    return found or dict.fromkeys("ABCD", "")


class MMBenchScorer(Scorer):
    """Circular and plain accuracy, as percentages."""

    layout = (
        'records {"index", "options": {letter: text} or "A" .. "D", "prediction", "answer": '
        "letter}, all rounds of each question, whose indices differ by millions; .tsv as well"
    )
    annotations = 'records {"index", "answer"}, where the predictions lack the answers'

    def score_file(self, path: Path, job: ScoringJob) -> Metrics:
        pairs = paired(read_records(path), job.annotations, "index")
        correct: dict[int, bool] = {}
        for said, asked in pairs:
            index = asked.integer("index")
            if index in correct:
                raise ValueError(
                    f"{said.where}: index {index} was there before; it must occur once"
                )
            correct[index] = option_letter(reply(said, asked), _options(asked)) == asked.text(
                "answer"
            )
        scores = mmbench_scores(correct)
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
        pairs = paired(read_records(path), job.annotations, "question_id")
        correct = [
            option_letter(reply(said, asked), _options(asked)) == asked.text("answer")
            for said, asked in pairs
        ]
        return dict(seed_scores(correct, [asked.integer("question_type_id") for _, asked in pairs]))


class MmmuScorer(Scorer):
    """MMMU, as shares of 1, over all questions and by subject.

    A reply that names no option gets one at random, which is a function of the question's id; where
    a record says what the official code drew (`random_choice`, `official_parsed`), that one.
    `overall_own_choice` does not look at such records. `n_random` counts these replies.
    """

    layout = (
        'records {"id", "question_type", "answer", "index2ans": {letter: option}, "response"}, and '
        'optionally "category", "random_choice" with "official_parsed"; or {id: response} with '
        "annotations"
    )
    annotations = 'the official answer_dict_val.json, {id: {"question_type", "ground_truth"}}'

    def score_file(self, path: Path, job: ScoringJob) -> Metrics:
        recorded, own, by_subject = [], [], dict[str, list[bool]]()
        n_random = 0
        for said, asked in paired(read_records(path), job.annotations, "id"):
            verdict, own_verdict, is_random = self._verdicts(said, asked)
            recorded.append(verdict)
            own.append(own_verdict)
            by_subject.setdefault(_subject(asked), []).append(verdict)
            n_random += is_random
        return {
            "n": len(recorded),
            "overall": mean(recorded),
            "overall_own_choice": mean(own),
            "n_random": n_random,
            "per_subject": {name: mean(by_subject[name]) for name in sorted(by_subject)},
        }

    def _verdicts(self, said: Record, asked: Record) -> tuple[bool, bool, bool]:
        """Right by the recorded draw, right by our own, and whether there is anything to draw."""
        text = said.text("response", "prediction", expected="the model's reply, a text")
        references = asked.texts("answer", "ground_truth", expected="a text, or a list of them")
        if asked.text("question_type") != "multiple-choice":
            right = mmmu.open_correct(mmmu.open_answers(text), references)
            return right, right, False
        options = self._options(asked)
        option = mmmu.chosen_option(text, options)
        is_marked = bool(said.values.get("random_choice"))
        own = option or mmmu.chance_option(asked.key("id"), list(options))
        drawn = said.text("official_parsed") if is_marked else own
        return drawn in references, own in references, is_marked or option is None

    def _options(self, asked: Record) -> dict[str, str]:
        if not asked.has("index2ans"):
            # The official answers by id have no options; replies are letters by then.
            return dict.fromkeys("ABCD", "")
        options = asked.get("index2ans", expected="an object of options by letter")
        if not isinstance(options, dict) or not options:
            raise asked.error(("index2ans",), "an object of options by letter", options)
        return {str(letter): str(text) for letter, text in options.items()}


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
        for said, asked in paired(read_records(path), job.annotations, "pid", "id"):
            choices = asked.texts("choices") if asked.values.get("choices") else None
            answer_type = asked.text("answer_type")
            if said.has("extraction"):
                extraction = str(said.values["extraction"])
            else:
                n_by_rule += 1
                extraction = mathvista.extracted_by_rule(
                    said.text("response"), choices, answer_type
                )
            answer = mathvista.normalised_answer(
                extraction,
                choices=choices,
                answer_type=answer_type,
                precision=_precision(asked),
            )
            correct.append(answer == str(asked.get("answer", expected="the reference")))
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


def _precision(asked: Record) -> int | None:
    value = asked.values.get("precision")
    return None if value in (None, "") else int(float(value))
