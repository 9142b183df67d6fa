"""A benchmark: records of a corpus put to the model as zero- or few-shot prompts (MM1, section 4).

Answers are greedy, and end at eos or at a stop string. What is asked, and after which exemplars, is
a function of the config alone.
"""

import contextlib
import functools
import weakref
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from absl import logging

from mm1_jax.batch import Batch, Document, Example, Image, Record
from mm1_jax.config import REQUIRED, Required, config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.images import BadImage, ImageTransform
from mm1_jax.data.input import Input
from mm1_jax.data.rows import RowShape, assemble
from mm1_jax.decoding.generate import bucket, generate
from mm1_jax.evals.answer_log import Answer, AnswerLog
from mm1_jax.evals.cases import Case, best_and_worst
from mm1_jax.evals.evaluator import EvalResult, Evaluator, PromptInput, Sample
from mm1_jax.evals.exemplars import Features, SelectedFrom, SimilarExemplars, store, stored
from mm1_jax.evals.metrics.answers import exact_match, truncate
from mm1_jax.evals.metrics.bootstrap import column_means, intervals
from mm1_jax.evals.prompts import (
    exemplar_indices,
    few_shot,
    reference,
    subset,
    text_of,
    without_answer,
)
from mm1_jax.field_types import NonEmpty, NonNegativeInt, Positive, PositiveInt, Seed
from mm1_jax.models.mm1 import MM1
from mm1_jax.multihost import distributed

# The pixels of a blanked picture: mid-grey, the ground of no embedded picture.
BLANK = 128
# Between the pictures of a sample; pictures on white and on black stand out from it.
_GAP = 200


@dataclass(frozen=True)
class Task:
    """A record that is asked, its document with the answer, and the exemplars before it.

    Attributes:
        prompt: What is put to the model.
        key: Names the task among those of its benchmark.
    """

    record: Record
    document: Document
    exemplars: tuple[Document, ...]
    prompt: Document
    key: str = ""


class Tasks:
    """Tasks that are made when they are asked for, since their pictures would fill the memory.

    Attributes:
        places: Of the records, among those that the benchmark could ask.
    """

    def __init__(self, make: Callable[[int], Task], places: Sequence[int]):
        self._make, self.places = make, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Task:
        return self._make(self.places[index])

    def __iter__(self) -> Iterator[Task]:
        return map(self._make, self.places)


@dataclass(frozen=True)
class Verdict:
    """What the model answered to a task, which is kept without its exemplars.

    `correct` is None where there is no reference.
    """

    task: Task
    answer: str
    reference: str
    correct: bool | None


@dataclass(frozen=True)
class Judgement:
    """Verdicts on all tasks with some shots, and the metrics under their own names."""

    verdicts: list[Verdict]
    metrics: dict[str, float]


class _PreparedFeatures(NamedTuple):
    """Of one model, which is not kept alive: the row of each place that is asked, and features."""

    model: weakref.ReferenceType
    rows: Mapping[int, int]
    queries: Features
    support: Features


class Benchmark(Evaluator):
    """Asks the test split of a corpus, with exemplars from its train split or the others asked.

    A prompt may be longer than a row of training: rotary positions go on, and the model reads it.
    It may show more pictures, too. Where prompts are longer, the metric `positions_beyond_training`
    says by how much; where pictures could not be shown, `undecodable_images` says how many.

    A subclass says what to report, by values of each example (`columns`), and scores of their means
    (`combine`); and where it differs from the default, which records to ask (`indices`), and when
    an answer is right (`is_correct`, or `judge`).
    """

    # Whether a model has to read images to be asked.
    shows_images: ClassVar[bool] = True

    @config_class
    class Config(Evaluator.Config):
        name: Required[NonEmpty] = REQUIRED
        # Its documents end with the answer.
        corpus: Required[Corpus.Config] = REQUIRED
        # Where exemplars come from; "test" where there is no train split, and then never the query.
        exemplar_split: str = "train"
        shots: tuple[NonNegativeInt, ...] = (0, 4, 8)
        # Shots at which all is repeated with every picture blank, under the name `<name>_blank`.
        blank_shots: tuple[NonNegativeInt, ...] = (0,)
        # How many records are asked without and with exemplars, a random subset; None: all.
        num_examples: PositiveInt | None = None
        num_few_shot_examples: PositiveInt | None = 120
        batch_size: PositiveInt = 64
        max_new_tokens: PositiveInt = 24
        # An answer ends before the first of these.
        stop_strings: tuple[NonEmpty, ...] = ("\n",)
        # Between the words around an answer and the answer, which are then one text; None: they
        # are tokenised apart, as in training.
        answer_joiner: str | None = None
        # Behind the answer of an exemplar, where texts are joined.
        exemplar_separator: str | None = None
        # Which records are exemplars: those most like the query; None: any, at random.
        exemplars: SimilarExemplars.Config | None = None
        # The metric that reports show as the score; None: accuracy, or else exact_match.
        headline: str | None = None
        # The factor that makes percentages of it; None: 100, of shares of 1.
        headline_scale: Positive | None = None
        # Of the random choice of records and exemplars.
        seed: Seed = 0
        num_samples: NonNegativeInt = 8

    def __init__(self, cfg: Config, *, input: Input | PromptInput):
        super().__init__(cfg, input=input)
        if input.image_transform is None and self.shows_images:
            raise ValueError(
                f"evals: the benchmark {cfg.name!r} shows images, and the model reads none; take "
                "it out, or give the model an encoder and a connector"
            )
        self._tokenizer = input.tokenizer
        self._image_transform: ImageTransform | None = input.image_transform
        # A batch for a model that reads none has slots all the same.
        self._image_size = 1 if input.image_transform is None else input.image_transform.image_size
        self._builder = input.example_builder.without_limits()
        self._max_sequence_length = input.example_builder.max_sequence_length
        self._queries: Corpus = cfg.corpus.instantiate(split="test")
        self._support: Corpus = cfg.corpus.instantiate(split=cfg.exemplar_split)
        self._similar = self._similar_exemplars(cfg)
        self._features: _PreparedFeatures | None = None
        self._check_records()

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
        progress: Callable[[], object] | None = None,
    ) -> Judgement:
        """Asks all tasks with so many exemplars.

        Args:
            blank: Every picture is blanked.
            log: Has the answers that were given before, and gets the others as they come.
            progress: Called at each answer that comes.
        """
        log = AnswerLog() if log is None else log
        self.prepare(model, shots)
        tasks = self.tasks(shots)
        self._check_keys(tasks)
        self.check(tasks)
        asked = [i for i, place in enumerate(tasks.places) if log.get(self.key(place)) is None]
        remarks = self._ask(model, shots, tasks, asked, blank, log, progress)
        answers = []
        for place in tasks.places:
            answer = log.get(self.key(place))
            assert answer is not None, self.key(place)
            answers.append(answer)
        verdicts = [
            self._verdict(self._task(0, place), answer.text)
            for place, answer in zip(tasks.places, answers, strict=True)
        ]
        remarks |= self._remarks(shots, verdicts, answers)
        return Judgement(verdicts, self.score(verdicts) | remarks)

    def _ask(
        self,
        model: MM1,
        shots: int,
        tasks: Tasks,
        asked: Sequence[int],
        blank: bool,
        log: AnswerLog,
        progress: Callable[[], object] | None,
    ) -> dict[str, float]:
        """Logs the answers to the `asked` of the tasks; what there is to know of the prompts."""
        shape, longest = self._shape(tasks)
        waiting: tuple[list[Task], list[tuple[str, ...]], object] | None = None
        # A batch is made while the one before it is on the device.
        for start in range(0, len(asked), self.config.batch_size):
            part = [tasks[i] for i in asked[start : start + self.config.batch_size]]
            batch, reasons = self._batch(part, shape, blank)
            tokens = generate(
                model,
                batch,
                max_new_tokens=self.config.max_new_tokens,
                eos=self._tokenizer.eos,
                pad=self._tokenizer.pad,
                forbidden=self._tokenizer.not_text,
            )
            if waiting is not None:
                self._take(*waiting, log, progress)
            waiting = part, reasons, tokens
        if waiting is not None:
            self._take(*waiting, log, progress)
        return self._beyond_training(shots, longest)

    def prepare(
        self,
        model: MM1,
        shots: int,
        *,
        cache: Path | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Computes what the choice of exemplars needs of the model; again, of another one alone.

        Args:
            cache: A file that keeps it for other runs, as long as `about` is the same.
        """
        if self._similar is None or not shots:
            return
        if self._features is not None and self._features.model() is model:
            return
        places = self.tasks(shots).places
        about = {**(about or {}), "places": zlib.crc32(repr(list(places)).encode())}
        found = None if cache is None else stored(cache, about)
        if found is None:
            queries, support = (
                SelectedFrom(
                    [str(corpus.source[i].get("id", i)) for i in numbers],
                    lambda place, corpus=corpus, numbers=numbers: without_answer(
                        corpus.document(numbers[place])
                    ),
                )
                for corpus, numbers in (
                    (self._queries, [self._query_indices[place] for place in places]),
                    (self._support, self._support_indices),
                )
            )
            found = self._similar.features(
                model, queries, support, pixels=self._shown, tokenizer=self._tokenizer
            )
            if cache is not None and distributed.is_first():
                store(cache, found[0], found[1], about)
        rows = {place: row for row, place in enumerate(places)}
        self._features = _PreparedFeatures(weakref.ref(model), rows, found[0], found[1])

    def tasks(self, shots: int) -> Tasks:
        """What is put to the model; the same in every run and on every host.

        Where exemplars are chosen by what the model makes of pictures, `prepare` comes first.
        """
        cfg = self.config
        limit = cfg.num_few_shot_examples if shots else cfg.num_examples
        places = subset(self.num_records, limit, seed=cfg.seed, benchmark=cfg.name)
        return Tasks(functools.partial(self._task, shots), places)

    def key(self, place: int) -> str:
        """Names a record among those that could be asked."""
        query = self._query_indices[place]
        return str(self._queries.source[query].get("id", query))

    @property
    def num_records(self) -> int:
        """How many could be asked."""
        return len(self._query_indices)

    def fingerprint(self) -> str:
        """What decides the documents that are asked, and those that exemplars are of."""
        return f"{self._queries.fingerprint()} {self._support.fingerprint()}"

    def describe(self) -> str:
        """How it is asked, for people to read."""
        cfg = self.config
        prompt = text_of(self.tasks(0)[0].prompt)
        parts = [
            f"{self.num_records} records",
            f"a prompt without exemplars: {prompt!r}",
            self._describe_exemplars(),
            f"greedy, at most {cfg.max_new_tokens} tokens, up to one of {list(cfg.stop_strings)}",
        ]
        if cfg.answer_joiner is not None:
            parts.insert(3, f"exemplars end with {cfg.exemplar_separator!r}")
        return "; ".join(parts)

    def _describe_exemplars(self) -> str:
        cfg = self.config
        number = f"{len(self._support_indices)} records"
        if cfg.exemplars is None:
            return f"exemplars at random for each task (seed {cfg.seed}) from {number}"
        features = cfg.exemplars.features_file or "the model's vision encoder"
        return f"exemplars most like the query by {features}, that one last, from {number}"

    def check(self, tasks: Tasks) -> None:
        """Raises ValueError where tasks cannot be put; called before the model is."""

    def indices(self, corpus: Corpus) -> Sequence[int]:
        """Which records of a split belong to the benchmark."""
        return range(len(corpus))

    def is_correct(self, answer: str, reference: str) -> bool:
        return exact_match(answer, reference)

    def judge(self, task: Task, answer: str) -> bool | None:
        """Whether an answer is right; None where the task has no reference."""
        return self.is_correct(answer, reference(task.document))

    def columns(self, verdicts: Sequence[Verdict]) -> dict[str, np.ndarray]:
        """Values of every example, whose means are reported; NaN where one has none."""
        return {"accuracy": np.array([bool(verdict.correct) for verdict in verdicts], float)}

    def combine(self, means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Scores of the means of the columns, elementwise."""
        return dict(means)

    def unit(self, task: Task) -> str:
        """What a task is drawn with when intervals are made."""
        return task.key

    def score(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        """The metrics, under their own names."""
        scores = self.combine(column_means(self.columns(verdicts)))
        return {name: float(x[0]) for name, x in scores.items() if not np.isnan(x[0])}

    def intervals(self, verdicts: Sequence[Verdict]) -> dict[str, tuple[float, float]]:
        """95% intervals of those metrics that are made of means."""
        units = [self.unit(verdict.task) for verdict in verdicts]
        return intervals(self.columns(verdicts), units, self.combine, seed=self.config.seed)

    @functools.cached_property
    def _query_indices(self) -> Sequence[int]:
        return self.indices(self._queries)

    @functools.cached_property
    def _support_indices(self) -> Sequence[int]:
        return self.indices(self._support)

    def _check_records(self) -> None:
        """What would otherwise come out after the training."""
        cfg = self.config
        if not self._query_indices:
            raise ValueError(f"{cfg.name}: corpus {cfg.corpus.name!r} has no test record to ask")
        for indices, corpus in (
            (self._query_indices, self._queries),
            (self._support_indices, self._support),
        ):
            self._check_indices(indices, len(corpus))
        exemplar_indices(
            len(self._support_indices),
            max((*cfg.shots, *cfg.blank_shots), default=0),
            seed=cfg.seed,
            benchmark=cfg.name,
            query=0,
            exclude=0 if cfg.exemplar_split == "test" else None,
        )

    def _check_keys(self, tasks: Tasks) -> None:
        """Answers are kept by key: of two records with one key, one would get the other's."""
        counts = Counter(map(self.key, tasks.places))
        if repeated := [key for key, count in counts.items() if count > 1]:
            raise ValueError(
                f"{self.config.name}: {len(repeated)} ids of corpus {self.config.corpus.name!r} "
                f"occur more than once, the first {repeated[0]!r}; give each record an id of its "
                "own, or none an id"
            )

    def _check_indices(self, indices: Sequence[int], num_records: int) -> None:
        beyond = [i for i in indices if not 0 <= i < num_records]
        if beyond:
            raise ValueError(
                f"{self.config.name}: {type(self).__name__}.indices has {beyond[0]}, expected "
                f"indices of the {num_records} records"
            )

    @functools.cached_property
    def _metrics(self) -> list[str] | None:
        """Names of the metrics, by scoring an empty answer to the first task.

        None where a subclass scores in a way of its own.

        Raises:
            ValueError: A method of the subclass returns something else than it should.
        """
        if type(self).score is not Benchmark.score:
            return None
        name = type(self).__name__
        task = self._task(0, 0)
        try:
            correct = self.judge(task, "")
            if not isinstance(correct, bool | np.bool_ | None):
                raise ValueError(
                    f"{self.config.name}: {name}.judge returned {correct!r}, expected True, False "
                    "or None"
                )
            columns = self.columns([Verdict(task, "", reference(task.document), correct)])
        except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
            raise ValueError(
                f"{self.config.name}: {name} fails on an empty answer to task {task.key!r}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(columns, Mapping) or any(np.shape(x) != (1,) for x in columns.values()):
            raise ValueError(
                f"{self.config.name}: {name}.columns returned {columns!r} for one verdict, "
                "expected a dict from names to arrays with a value for each verdict"
            )
        scores = self.combine(column_means(columns))
        if not isinstance(scores, Mapping):
            raise ValueError(
                f"{self.config.name}: {name}.combine returned {scores!r}, expected a dict from "
                "names to arrays"
            )
        return list(scores)

    def metric_names(self) -> list[str] | None:
        cfg, metrics = self.config, self._metrics
        if metrics is None:
            return None
        asked = [(cfg.name, shots) for shots in cfg.shots]
        asked += [(f"{cfg.name}_blank", shots) for shots in cfg.blank_shots]
        return [f"{name}/{shots}/{metric}" for name, shots in asked for metric in metrics]

    def _task(self, shots: int, place: int) -> Task:
        cfg = self.config
        query = self._query_indices[place]
        exemplars = self._exemplars(shots, place)
        if any(not reference(exemplar).strip() for exemplar in exemplars):
            raise ValueError(
                f"{cfg.name}: an exemplar of task {self.key(place)!r} has no answer; take those of "
                "a split that is published with answers"
            )
        record, document = self._queries.source[query], self._queries.document(query)
        prompt = few_shot(
            exemplars,
            document,
            joiner=cfg.answer_joiner,
            separator=cfg.exemplar_separator or "",
        )
        return Task(record, document, tuple(exemplars), prompt, self.key(place))

    def _similar_exemplars(self, cfg: Config) -> SimilarExemplars | None:
        """What chooses exemplars; None where they are random."""
        if cfg.exemplars is None:
            return None
        compares_pictures = cfg.exemplars.features_file is None and not cfg.exemplars.text_weight
        if compares_pictures and not self.shows_images:
            raise ValueError(
                f"{cfg.name}: exemplars are to be those with similar pictures, and the benchmark "
                "shows none; set exemplars.text_weight=1 or a features_file, or exemplars=None"
            )
        return cfg.exemplars.instantiate()

    def _exemplars(self, shots: int, place: int) -> list[Document]:
        """The solved tasks before the query at a place, in order."""
        drawn = self._exemplar_places(shots, place)
        return [self._support.document(self._support_indices[i]) for i in drawn]

    def _exemplar_places(self, shots: int, place: int) -> list[int]:
        """Which records of the support are shown before the query at a place, in order."""
        cfg = self.config
        exclude = place if cfg.exemplar_split == "test" else None
        if self._similar is not None and shots:
            if self._features is None:
                raise ValueError(
                    f"{cfg.name}: exemplars are chosen by features of the model; call "
                    "prepare(model, shots) before tasks are looked at"
                )
            _, rows, queries, support = self._features
            return self._similar.choose(queries, support, rows[place], shots, exclude)
        return exemplar_indices(
            len(self._support_indices),
            shots,
            seed=cfg.seed,
            benchmark=cfg.name,
            query=self._query_indices[place],
            exclude=exclude,
        )

    def _take(
        self,
        tasks: Sequence[Task],
        reasons: Sequence[tuple[str, ...]],
        tokens: object,
        log: AnswerLog,
        progress: Callable[[], object] | None,
    ) -> None:
        """Waits for the tokens of a batch, and logs them as answers."""
        # The rows behind the tasks are padding.
        rows = np.asarray(tokens)[: len(tasks)]
        for task, row, bad in zip(tasks, rows, reasons, strict=True):
            text = truncate(self._tokenizer.decode(row.tolist()), self.config.stop_strings)
            log.add(
                task.key,
                Answer(text, bad),
                prompt=text_of(without_answer(task.document)),
                reference=reference(task.document),
                correct=self.judge(task, text),
            )
            if progress is not None:
                progress()

    def _verdict(self, task: Task, answer: str) -> Verdict:
        return Verdict(task, answer, reference(task.document), self.judge(task, answer))

    def _example(self, task: Task) -> Example:
        return self._builder.prompt(task.prompt)

    def _shape(self, tasks: Tasks) -> tuple[RowShape, int]:
        """The one shape of all batches, so that one program serves them; the longest prompt."""
        sizes = [
            (len(example.tokens), len(example.images)) for example in map(self._example, tasks)
        ]
        longest = max(length for length, _ in sizes)
        # The model has no form without a slot for an image.
        num_images = max(1, *(number for _, number in sizes))
        return RowShape(bucket(longest), num_images, self._image_size), longest

    def _batch(
        self, tasks: Sequence[Task], shape: RowShape, blank: bool
    ) -> tuple[Batch, list[tuple[str, ...]]]:
        """The prompts, and why pictures of each could not be decoded; their slots are empty."""
        bad_images: dict[int, str] = {}

        def pixels(image: Image) -> np.ndarray | None:
            try:
                return self._pixels(image)
            except BadImage as error:
                bad_images[id(image)] = str(error)
                return None

        examples = [self._example(task) for task in tasks]
        batch = assemble(examples, pixels, shape, num_rows=self.config.batch_size)
        if blank:
            batch = replace(batch, images=np.full_like(batch.images, BLANK))
        reasons = [
            tuple(bad_images[id(image)] for image in example.images if id(image) in bad_images)
            for example in examples
        ]
        return batch, reasons

    def _beyond_training(self, shots: int, longest: int) -> dict[str, float]:
        """Of the longest prompt."""
        longest, limit = longest + self.config.max_new_tokens, self._max_sequence_length
        if longest <= limit:
            return {}
        logging.warning(
            "%s with %d shots: prompt and answer take up to %d positions, and the rows of "
            "training, input.max_sequence_length, had %d",
            self.config.name,
            shots,
            longest,
            limit,
        )
        return {"positions_beyond_training": float(longest - limit)}

    def _remarks(
        self, shots: int, verdicts: Sequence[Verdict], answers: Sequence[Answer]
    ) -> dict[str, float]:
        """What there is to know of the answers, beside scores."""
        bad_images = [reason for answer in answers for reason in answer.undecodable]
        if not bad_images:
            return {}
        logging.warning(
            "%s with %d shots: %d pictures cannot be decoded and were not shown; the first: %s",
            self.config.name,
            shots,
            len(bad_images),
            bad_images[0],
        )
        return {"undecodable_images": float(len(bad_images))}

    def cases(self, verdicts: Sequence[Verdict], count: int) -> tuple[list[Case], list[Case]]:
        """The best and the worst answers, at most `count` each, for people to look at."""
        quality = self.quality(verdicts)
        keys = [verdict.task.key for verdict in verdicts]
        best, worst = (
            [self._case(verdicts[i], float(quality[i])) for i in places]
            for places in best_and_worst(quality, keys, count)
        )
        return best, worst

    def quality(self, verdicts: Sequence[Verdict]) -> np.ndarray:
        """How good each answer is, by the headline if that is a mean; NaN without a reference."""
        columns = self.columns(verdicts) if verdicts and self.config.headline else {}
        if self.config.headline in columns:
            return columns[self.config.headline]
        return np.array([np.nan if x.correct is None else x.correct for x in verdicts], float)

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
        """Some wrong and some right answers, half of each where there are enough."""
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

    def _pixels(self, image: Image) -> np.ndarray:
        assert self._image_transform is not None, "asked of models that read images"
        return self._image_transform(image)

    def _shown(self, image: Image) -> np.ndarray | None:
        try:
            return self._pixels(image)
        except BadImage:
            return None

    def _picture(self, images: Sequence[Image]) -> np.ndarray | None:
        pixels = []
        for image in images:
            with contextlib.suppress(BadImage):
                pixels.append(self._pixels(image))
        return side_by_side(pixels) if pixels else None


def side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one height in a row, with a grey gap between them."""
    first, *others = pictures
    height, width, depth = first.shape
    gap = np.full((height, max(1, width // 12), depth), _GAP, np.uint8)
    return np.concatenate([first, *(part for one in others for part in (gap, one))], axis=1)


def named(name: str, shots: int, values: Mapping[str, float]) -> dict[str, float]:
    """Metrics under the keys `name/shots/metric`."""
    return {f"{name}/{shots}/{key}": value for key, value in values.items()}
