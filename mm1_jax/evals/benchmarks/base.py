"""A benchmark: records of a corpus put to the model as zero- or few-shot prompts (MM1, section 4).

Answers are greedy, and end at eos or at a stop string. What is asked, and after which exemplars, is
a function of the config alone.
"""

import abc
import contextlib
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from absl import logging

from mm1_jax.batch import Batch, Document, Example, Image, Record
from mm1_jax.config import REQUIRED, Required, config_class
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.examples import ExampleBuilder
from mm1_jax.data.images import BadImage, ImageTransform
from mm1_jax.data.input import Input
from mm1_jax.data.rows import RowShape, assemble
from mm1_jax.evals.evaluator import EvalResult, Evaluator, Sample
from mm1_jax.evals.metrics.answers import exact_match, truncate
from mm1_jax.evals.prompts import (
    exemplar_indices,
    few_shot,
    reference,
    subset,
    text_of,
    without_answer,
)
from mm1_jax.generate import bucket, generate
from mm1_jax.models.mm1 import MM1

# The pixels of a blanked picture: mid-grey, the ground of no embedded picture.
BLANK = 128


@dataclass(frozen=True)
class Task:
    """A record that is asked, its document with the answer, and the exemplars before it."""

    record: Record
    document: Document
    exemplars: tuple[Document, ...]

    @property
    def prompt(self) -> Document:
        return few_shot(self.exemplars, self.document)


@dataclass(frozen=True)
class Verdict:
    """What the model answered to a task."""

    task: Task
    answer: str
    reference: str
    correct: bool


class Benchmark(Evaluator):
    """Asks the test split of a corpus, with exemplars from its train split or the others asked.

    A prompt may be longer than a row of training: rotary positions go on, and the model reads it.
    Where prompts are, the metric `positions_beyond_training` says by how much; where pictures could
    not be shown, `undecodable_images` says how many.

    A subclass says what to report (`score`), and where it differs from the default, which records
    to ask (`indices`) and when an answer is right (`is_correct`).
    """

    @config_class
    class Config(Evaluator.Config):
        name: Required[str] = REQUIRED
        # Its documents end with the answer.
        corpus: Required[Corpus.Config] = REQUIRED
        # Where exemplars come from; "test" where there is no train split, and then never the query.
        exemplar_split: str = "train"
        shots: tuple[int, ...] = (0, 4, 8)
        # Shots at which all is repeated with every picture blank, under the name `<name>_blank`.
        blank_shots: tuple[int, ...] = (0,)
        # How many records are asked without and with exemplars, a random subset; None: all.
        num_examples: int | None = None
        num_few_shot_examples: int | None = 120
        batch_size: int = 64
        max_new_tokens: int = 24
        # An answer ends before the first of these.
        stop_strings: tuple[str, ...] = ("\n",)
        # Of the random choice of records and exemplars.
        seed: int = 0
        num_samples: int = 8

    def __init__(self, cfg: Config, *, input: Input):
        super().__init__(cfg, input=input)
        for name in ("shots", "blank_shots"):
            if min(getattr(cfg, name), default=0) < 0:
                raise ValueError(f"{cfg.name}: {name}={getattr(cfg, name)} must not be negative")
        for name in ("num_examples", "num_few_shot_examples", "batch_size", "max_new_tokens"):
            value = getattr(cfg, name)
            if value is not None and value < 1:
                raise ValueError(f"{cfg.name}: {name}={value} must be at least 1")
        if input.image_transform is None:
            raise ValueError(
                f"evals: the benchmark {cfg.name!r} shows images, and the model reads none; take "
                "it out, or give the model an encoder and a connector"
            )
        self._tokenizer = input.tokenizer
        self._image_transform: ImageTransform = input.image_transform
        self._num_image_tokens = input.example_builder.num_image_tokens
        self._max_sequence_length = input.example_builder.max_sequence_length
        self._queries: Corpus = cfg.corpus.instantiate(split="test")
        self._support: Corpus = cfg.corpus.instantiate(split=cfg.exemplar_split)
        self._check_records()

    def run(self, model: MM1) -> EvalResult:
        cfg = self.config
        metrics: dict[str, float] = {}
        samples: list[Sample] = []
        for shots in cfg.shots:
            verdicts, remarks = self._judge(model, shots)
            metrics |= _named(cfg.name, shots, self.score(verdicts) | remarks)
            samples = samples or self._samples(verdicts)
        for shots in cfg.blank_shots:
            verdicts, remarks = self._judge(model, shots, blank=True)
            metrics |= _named(f"{cfg.name}_blank", shots, self.score(verdicts) | remarks)
        return EvalResult(metrics, samples)

    def tasks(self, shots: int) -> list[Task]:
        """What is put to the model; the same in every run and on every host."""
        cfg = self.config
        limit = cfg.num_few_shot_examples if shots else cfg.num_examples
        tasks = []
        for place in subset(len(self._query_indices), limit, seed=cfg.seed, benchmark=cfg.name):
            query = self._query_indices[place]
            drawn = exemplar_indices(
                len(self._support_indices),
                shots,
                seed=cfg.seed,
                benchmark=cfg.name,
                query=query,
                exclude=place if cfg.exemplar_split == "test" else None,
            )
            exemplars = [self._support.document(self._support_indices[i]) for i in drawn]
            record = self._queries.source[query]
            tasks.append(Task(record, self._queries.document(query), tuple(exemplars)))
        return tasks

    def indices(self, corpus: Corpus) -> Sequence[int]:
        """Which records of a split belong to the benchmark."""
        return range(len(corpus))

    def is_correct(self, answer: str, reference: str) -> bool:
        return exact_match(answer, reference)

    @abc.abstractmethod
    def score(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        """The metrics, under their own names."""

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
        exemplar_indices(
            len(self._support_indices),
            max((*cfg.shots, *cfg.blank_shots), default=0),
            seed=cfg.seed,
            benchmark=cfg.name,
            query=0,
            exclude=0 if cfg.exemplar_split == "test" else None,
        )

    def _judge(
        self, model: MM1, shots: int, *, blank: bool = False
    ) -> tuple[list[Verdict], dict[str, float]]:
        """Verdicts on all tasks, and what is remarkable about the prompts, as metrics."""
        tasks = self.tasks(shots)
        examples = self._examples(tasks)
        bad_images: list[str] = []
        # All are dispatched before the first is fetched, so that batches are made meanwhile.
        generated = [
            generate(
                model,
                batch,
                max_new_tokens=self.config.max_new_tokens,
                eos=self._tokenizer.eos,
                pad=self._tokenizer.pad,
                forbidden=self._tokenizer.not_text,
            )
            for batch in self._batches(examples, blank, bad_images)
        ]
        rows = np.concatenate([np.asarray(tokens) for tokens in generated])
        verdicts = [
            self._verdict(task, row) for task, row in zip(tasks, rows[: len(tasks)], strict=True)
        ]
        return verdicts, self._remarks(shots, examples, bad_images)

    def _verdict(self, task: Task, tokens: np.ndarray) -> Verdict:
        answer = truncate(self._tokenizer.decode(tokens.tolist()), self.config.stop_strings)
        right = reference(task.document)
        return Verdict(task, answer, right, self.is_correct(answer, right))

    def _examples(self, tasks: Sequence[Task]) -> list[Example]:
        # A builder of its own: the limits of a row of training are not those of a prompt.
        builder = ExampleBuilder(
            self._tokenizer,
            num_image_tokens=self._num_image_tokens,
            max_sequence_length=sys.maxsize,
            max_images=sys.maxsize,
        )
        return [builder.prompt(task.prompt) for task in tasks]

    def _batches(
        self, examples: Sequence[Example], blank: bool, bad_images: list[str]
    ) -> Iterator[Batch]:
        """The prompts in order, all batches of one shape, so that one program serves them.

        Args:
            bad_images: Takes the reasons of pictures that cannot be decoded; their slots are empty.
        """

        def pixels(image: Image) -> np.ndarray | None:
            try:
                return self._image_transform(image)
            except BadImage as error:
                bad_images.append(str(error))
                return None

        num_rows = self.config.batch_size
        shape = RowShape(
            bucket(max(len(example.tokens) for example in examples)),
            # The model has no form without a slot for an image.
            max(1, *(len(example.images) for example in examples)),
            self._image_transform.image_size,
        )
        for start in range(0, len(examples), num_rows):
            batch = assemble(examples[start : start + num_rows], pixels, shape, num_rows=num_rows)
            yield replace(batch, images=np.full_like(batch.images, BLANK)) if blank else batch

    def _remarks(
        self, shots: int, examples: Sequence[Example], bad_images: Sequence[str]
    ) -> dict[str, float]:
        remarks = {}
        name, limit = f"{self.config.name} with {shots} shots", self._max_sequence_length
        longest = max(len(example.tokens) for example in examples) + self.config.max_new_tokens
        if longest > limit:
            logging.warning(
                "%s: prompt and answer take up to %d positions, and the rows of training, "
                "input.max_sequence_length, had %d",
                name,
                longest,
                limit,
            )
            remarks["positions_beyond_training"] = float(longest - limit)
        if bad_images:
            logging.warning(
                "%s: %d pictures cannot be decoded and were not shown; the first: %s",
                name,
                len(bad_images),
                bad_images[0],
            )
            remarks["undecodable_images"] = float(len(bad_images))
        return remarks

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

    def _picture(self, images: Sequence[Image]) -> np.ndarray | None:
        pixels = []
        for image in images:
            with contextlib.suppress(BadImage):
                pixels.append(self._image_transform(image))
        return np.concatenate(pixels, axis=1) if pixels else None


def _named(name: str, shots: int, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}/{shots}/{key}": value for key, value in values.items()}
