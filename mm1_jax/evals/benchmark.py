"""Benchmarks: tasks of a corpus, asked of a model and scored (MM1, section 4).

Each benchmark is a config of one class: the source of its records (`corpus`), the way they are
asked (prompts, shots, `asking`), and the function that scores them (`scoring`).
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from absl import logging

from mm1_jax.batch import Document, Image
from mm1_jax.config import REQUIRED, Required, config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.images import BadImage, Viewer
from mm1_jax.data.input import Input
from mm1_jax.evals.answer_log import AnswerLog
from mm1_jax.evals.answers import Answer, Likelihood, OptionAnswer, TextAnswer
from mm1_jax.evals.asking import Ask, compare_options, described, generate_answers
from mm1_jax.evals.benchmarks.annotations import ImageFile
from mm1_jax.evals.cases import Case, best_and_worst, side_by_side
from mm1_jax.evals.evaluator import EvalResult, Evaluator, PromptInput, Sample
from mm1_jax.evals.exemplars import SimilarExemplars
from mm1_jax.evals.judge import Grades
from mm1_jax.evals.prompts import reference, text_of, without_answer
from mm1_jax.evals.reasoning import Reasoning
from mm1_jax.evals.scoring.bootstrap import intervals
from mm1_jax.evals.scoring.items import Item, Scored, Scoring, quality, scores
from mm1_jax.evals.tasks import Task, TaskMaker, Tasks
from mm1_jax.field_types import NonEmpty, NonNegativeInt, Positive, PositiveInt, Seed
from mm1_jax.models.mm1 import MM1


@dataclass(frozen=True)
class Verdict:
    """The model's answer to a task and whether it is right.

    Attributes:
        task: The task, without its exemplars.
        answer: The generated text, or the chosen option.
        correct: None without a reference, or where the scoring decides only by degree.
    """

    task: Task
    item: Item
    answer: str
    correct: bool | None

    @property
    def reference(self) -> str:
        return self.item.reference


@dataclass(frozen=True)
class Judgement:
    """Verdicts on all tasks at one number of shots.

    Attributes:
        metrics: Values by metric name.
        scored: Values of the tasks that have a reference; None if no task has one.
    """

    verdicts: list[Verdict]
    metrics: dict[str, float]
    scored: Scored | None = field(default=None, compare=False)


class Benchmark(Evaluator):
    """Asks a model the test split of a corpus, with exemplars from `exemplar_split`.

    A prompt may be longer than a training row, as rotary positions extend beyond it, and may show
    more pictures. The metric `positions_beyond_training` says by how many positions it is longer,
    and `undecodable_images` counts pictures that could not be shown.
    """

    @config_class
    class Config(Evaluator.Config):
        name: Required[NonEmpty] = REQUIRED
        # Corpus whose documents end with the answer.
        corpus: Required[Corpus.Config] = REQUIRED
        # Computes values per answer, and the scores.
        scoring: Required[Scoring] = REQUIRED
        # The way the model is asked: `generate_answers` or `compare_options`.
        asking: Ask = generate_answers
        # True if the model must read images.
        shows_images: bool = True
        # Chooses the records of a split that belong to the benchmark; None means all.
        records: Callable[[Corpus], Sequence[int]] | None = None
        # Split that exemplars come from. With "test", a query is never its own exemplar.
        exemplar_split: str = "train"
        # (corpus, index of the query, shots) -> exemplars; None draws them from the split.
        exemplars_of: Callable[[Corpus, int, int], list[Document]] | None = None
        shots: tuple[NonNegativeInt, ...] = (0, 4, 8)
        # Shots at which the benchmark is repeated with blank pictures, as `<name>_blank`.
        blank_shots: tuple[NonNegativeInt, ...] = (0,)
        # Sizes of the random subsets asked without and with exemplars; None means all records.
        num_examples: PositiveInt | None = None
        num_few_shot_examples: PositiveInt | None = 120
        batch_size: PositiveInt = 64
        max_new_tokens: PositiveInt = 24
        # Maximum positions of prompt and option; None means those of a training row.
        max_length: PositiveInt | None = None
        # A generated answer ends before the first of these.
        stop_strings: tuple[NonEmpty, ...] = ("\n",)
        # Joins prompt and answer into one text; None tokenizes them separately, as in training.
        answer_joiner: str | None = None
        # Text after the answer of each exemplar; used only with `answer_joiner`.
        exemplar_separator: str | None = None
        # Number of exemplars at the end whose pictures are shown in tiles; pictures of the others
        # have one view each (MM1, mixed resolution). None means all.
        num_tiled_exemplars: NonNegativeInt | None = None
        # Chooses the exemplars most similar to the query; None draws them at random.
        exemplars: SimilarExemplars.Config | None = None
        # Metric that reports show as the score; None means accuracy or, without it, exact_match.
        headline: str | None = None
        # Factor that converts the headline to percent; None means 100, for fractions of 1.
        headline_scale: Positive | None = None
        # Seed of the random choice of records and exemplars.
        seed: Seed = 0
        num_samples: NonNegativeInt = 8
        # If True, missing pictures are counted and not shown; if False, they are an error.
        allow_missing_images: bool = False
        # Returns suffix and content of a predictions file as the server of a published benchmark
        # reads it; None writes no such file.
        predictions: Callable[[Sequence[Verdict]], tuple[str, str]] | None = None
        # (verdicts, judge, config, finder of data files, progress) -> grades by the judge
        grading: Callable[..., Grades] | None = None
        # The number of times that the judge grades each answer.
        num_judge_runs: PositiveInt | None = None
        # System message to the judge.
        system_message: str | None = None

    def __init__(self, cfg: Config, *, input: Input | PromptInput):
        super().__init__(cfg, input=input)
        if input.image_transform is None and cfg.shows_images:
            raise ValueError(
                f"evals: the benchmark {cfg.name!r} shows images, but the model reads none; remove "
                "it, or give the model a vision encoder and a connector"
            )
        self._input = input
        # Extracts answers from replies with reasoning.
        reasoning = getattr(cfg.corpus.to_document, "reasoning", None)
        self._reasoning: Reasoning | None = None if reasoning is None else reasoning.instantiate()
        self._pixels = Viewer(input.image_transform)
        self.maker = TaskMaker(cfg, tokenizer=input.tokenizer, pixels=self._pixels)

    def run(self, model: MM1) -> EvalResult:
        cfg = self.config
        metrics: dict[str, float] = {}
        samples: list[Sample] = []
        for shots in cfg.shots:
            judgement = self.run_shots(model, shots)
            metrics |= named(cfg.name, shots, judgement.metrics)
            samples = samples or self._samples(judgement.verdicts)
        for shots in cfg.blank_shots:
            judgement = self.run_shots(model, shots, blank=True)
            metrics |= named(f"{cfg.name}_blank", shots, judgement.metrics)
        return EvalResult(metrics, samples)

    def run_shots(
        self,
        model: MM1,
        shots: int,
        *,
        blank: bool = False,
        log: AnswerLog | None = None,
        progress: Callable[[], object] = lambda: None,
    ) -> Judgement:
        """Asks all tasks at a number of shots.

        Args:
            blank: Replaces every picture with a blank one.
            log: Holds earlier answers, which are not asked again; new answers are added to it.
            progress: Called after each new answer.
        """
        log = AnswerLog() if log is None else log
        maker = self.maker
        maker.prepare(model, shots)
        tasks = maker.tasks(shots)
        maker.check_keys(tasks)
        self.check(tasks)
        waiting = [i for i, place in enumerate(tasks.places) if log.get(maker.key(place)) is None]
        asked = self.config.asking(model, tasks, waiting, self.config, self._input, blank=blank)
        for task, answer in asked.answers:
            self._log(log, task, answer)
            progress()
        solved = [maker.task(0, place) for place in tasks.places]
        answers = [log[task.key] for task in solved]
        return self._judgement(solved, answers, {**asked.remarks, **self._remarks(shots, answers)})

    def tasks(self, shots: int) -> Tasks:
        """Returns the tasks at a number of shots."""
        return self.maker.tasks(shots)

    def check(self, tasks: Tasks) -> None:
        """Raises ValueError if pictures of the tasks are missing. Called before any is asked."""
        if self.config.allow_missing_images:
            return
        # Each file is checked once, as many tasks may show the same picture.
        files = {
            image.data.path: image.data
            for task in tasks
            for image in task.prompt.images
            if isinstance(image.data, ImageFile)
        }
        if missing := [path for path, file in files.items() if not file.exists()]:
            raise ValueError(
                f"{self.config.name}: {len(missing)} pictures are missing, the first {missing[0]}; "
                "unpack them, or set allow_missing_images=True to count them without showing them"
            )

    def fingerprint(self) -> str:
        """Digest of the documents that are asked and of those that exemplars are drawn from."""
        return self.maker.fingerprint()

    @property
    def tiling_fingerprint(self) -> str | None:
        """Describes how pictures are shown as views; None if each picture is one view."""
        tiling = self._input.example_builder.tiling
        return None if tiling is None else tiling.fingerprint()

    def describe(self) -> str:
        """Describes the protocol for people to read."""
        exemplars = self.maker.describe_exemplars()
        how = described(self.tasks(0)[0], exemplars, self.config)
        return f"{self.maker.num_records} records; {how}"

    def intervals(self, judgement: Judgement) -> dict[str, tuple[float, float]]:
        """Returns 95% intervals of the metrics that are computed from columns."""
        scored = judgement.scored
        if scored is None or not scored.columns:
            return {}
        units = scored.units
        if units is None:
            units = [x.item.key for x in judgement.verdicts if x.item.has_reference]
        return intervals(scored.columns, units, scored.combine, seed=self.config.seed)

    def cases(self, judgement: Judgement, count: int) -> tuple[list[Case], list[Case]]:
        """Returns the best and the worst answers, at most `count` each, for people to look at."""
        verdicts, values = judgement.verdicts, self.quality(judgement)
        keys = [verdict.task.key for verdict in verdicts]
        best, worst = (
            [self._case(verdicts[i], float(values[i])) for i in places]
            for places in best_and_worst(values, keys, count)
        )
        return best, worst

    def quality(self, judgement: Judgement) -> np.ndarray:
        """Returns the quality of each answer; NaN without a reference."""
        values = np.full(len(judgement.verdicts), np.nan)
        if judgement.scored is not None:
            labelled = [verdict.item.has_reference for verdict in judgement.verdicts]
            values[labelled] = quality(judgement.scored, self.config.headline)
        return values

    def metric_names(self) -> list[str] | None:
        """Returns the metric keys, found by scoring an empty answer to the first task.

        Returns None for a published benchmark: it may have metrics of parts that do not include
        the first task.

        Raises:
            ValueError: The scoring function fails, or returns an invalid value.
        """
        cfg, task = self.config, self.maker.task(0, 0)
        if cfg.predictions is not None:
            return None
        empty: Answer = TextAnswer("")
        if cfg.asking is compare_options:
            empty = OptionAnswer((Likelihood(0.0, False, 1, 1),) * len(task.record["options"]))
        metrics = _score_names(cfg.name, cfg.scoring, self._item(task, empty))
        asked = [(cfg.name, shots) for shots in cfg.shots]
        asked += [(f"{cfg.name}_blank", shots) for shots in cfg.blank_shots]
        return [f"{name}/{shots}/{metric}" for name, shots in asked for metric in metrics]

    def _item(self, task: Task, answer: Answer) -> Item:
        right = reference(task.document)
        if self._reasoning is not None and isinstance(answer, TextAnswer):
            right = self._reasoning.extracted(right)
            answer = replace(answer, text=self._reasoning.extracted(answer.text))
        return Item(task.record, answer, task.key, right)

    def _log(self, log: AnswerLog, task: Task, answer: Answer) -> None:
        (verdict,) = self._judgement([task], [answer], {}).verdicts
        chosen = {"chosen": verdict.answer} if isinstance(answer, OptionAnswer) else {}
        log.add(
            task.key,
            answer,
            prompt=text_of(without_answer(task.document)),
            reference=verdict.reference,
            **chosen,
            correct=verdict.correct,
        )

    def _judgement(
        self, tasks: Sequence[Task], answers: Sequence[Answer], remarks: Mapping[str, float]
    ) -> Judgement:
        items = [self._item(*pair) for pair in zip(tasks, answers, strict=True)]
        labelled = [item for item in items if item.has_reference]
        scored = self.config.scoring(labelled) if labelled else None
        metrics = {} if scored is None else scores(scored)
        if self.config.predictions is not None:
            metrics = {"n": float(len(items)), **metrics}
        if len(labelled) < len(items):
            metrics["without_reference"] = float(len(items) - len(labelled))
        metrics |= getattr(self.maker.queries.source, "remarks", {})
        correct = iter(scored.correct if scored is not None else ())
        chosen = iter(scored.chosen if scored is not None and scored.chosen is not None else ())
        verdicts = []
        for task, item in zip(tasks, items, strict=True):
            is_right, answer_text = None, item.answer_text
            if item.has_reference:
                is_right, answer_text = next(correct), next(chosen, answer_text)
            verdicts.append(Verdict(task, item, answer_text, is_right))
        return Judgement(verdicts, {**metrics, **remarks}, scored)

    def _remarks(self, shots: int, answers: Sequence[Answer]) -> dict[str, float]:
        """Returns the numbers of undecodable pictures and truncated prompts, where not zero."""
        name, found = self.config.name, {}
        bad_images = [
            reason
            for answer in answers
            if isinstance(answer, TextAnswer)
            for reason in answer.undecodable
        ]
        if bad_images:
            logging.warning(
                "%s with %d shots: %d pictures cannot be decoded and were not shown; the first: %s",
                *(name, shots, len(bad_images), bad_images[0]),
            )
            found["undecodable_images"] = float(len(bad_images))
        num_cut = sum(
            any(one.num_cut for one in answer.likelihoods)
            for answer in answers
            if isinstance(answer, OptionAnswer)
        )
        if num_cut:
            logging.warning(
                "%s with %d shots: %d of %d prompts are longer than a row and lost their "
                "beginning; use fewer shots, or set max_length, which rotary positions allow",
                *(name, shots, num_cut, len(answers)),
            )
            found["truncated_prompts"] = float(num_cut)
        return found

    def _case(self, verdict: Verdict, quality: float) -> Case:
        document, record = verdict.task.document, verdict.task.record
        references = record.get("captions") or record.get("answers") or [verdict.reference]
        return Case(
            image=self._picture(document.images),
            prompt=text_of(without_answer(document)),
            references=tuple(dict.fromkeys(map(str, references))),
            answer=verdict.answer,
            quality=quality,
            key=verdict.task.key,
        )

    def _samples(self, verdicts: Sequence[Verdict]) -> list[Sample]:
        """Returns wrong and right answers, half of each if there are enough."""
        limit = self.config.num_samples
        wrong = [verdict for verdict in verdicts if not verdict.correct]
        right = [verdict for verdict in verdicts if verdict.correct]
        num_wrong = max(limit // 2, limit - len(right))
        chosen = wrong[:num_wrong]
        chosen += right[: limit - len(chosen)]
        return [
            Sample(
                image=self._picture(verdict.task.document.images),
                prompt=text_of(without_answer(verdict.task.document)),
                reference=verdict.reference,
                answer=verdict.answer,
                correct=verdict.correct,
                benchmark=self.config.name,
            )
            for verdict in chosen
        ]

    def _picture(self, images: Sequence[Image]) -> np.ndarray | None:
        pixels = []
        for image in images:
            with contextlib.suppress(BadImage):
                pixels.append(self._pixels(image))
        return side_by_side(pixels) if pixels else None


def named(name: str, shots: int, values: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics under the keys `name/shots/metric`."""
    return {f"{name}/{shots}/{key}": value for key, value in values.items()}


def _score_names(name: str, scoring: Scoring, item: Item) -> list[str]:
    """Returns the names of the scores. Raises ValueError if the function cannot score the item."""
    function = getattr(scoring, "__name__", repr(scoring))
    try:
        scored: Any = scoring([item])
        if not isinstance(scored, Scored):
            raise ValueError(f"{name}: {function} returned {scored!r}, expected a Scored")
        columns, correct = scored.columns, list(scored.correct)
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(
            f"{name}: {function} fails on an empty answer to task {item.key!r}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if len(correct) != 1 or not isinstance(correct[0], bool | np.bool_ | None):
        raise ValueError(
            f"{name}: {function} has correct={correct!r} for one item, expected True, False or None"
        )
    if not isinstance(columns, Mapping) or any(np.shape(x) != (1,) for x in columns.values()):
        raise ValueError(
            f"{name}: {function} has columns={columns!r} for one item, expected a dict from names "
            "to arrays with a value for each item"
        )
    try:
        return list(scores(scored))
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(
            f"{name}: combine of {function} fails on the tallies of one item: "
            f"{type(error).__name__}: {error}; expected a dict from names to arrays"
        ) from error
