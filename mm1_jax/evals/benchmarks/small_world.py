"""Benchmarks of the small world on held-out pictures, and of its texts.

A benchmark has the fields of the corpora of training, such as the size of print, if it is made with
them: `world_print(print_sizes=(8,))`.
"""

from typing import Any

from mm1_jax.data.corpora import world_records
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.data.corpora.world_records import WorldTextTasks
from mm1_jax.evals.asking import compare_options
from mm1_jax.evals.benchmark import Benchmark
from mm1_jax.evals.prompts import CaptionTask, QuestionTask
from mm1_jax.evals.scoring.captions import relative_captions
from mm1_jax.evals.scoring.exact_match import accuracy_by_kind
from mm1_jax.evals.scoring.options import option_accuracy

_NUM_EXAMPLES = 240
_BLANK_SHOTS = (0, 8)


def world_captions(**source: Any) -> Benchmark.Config:
    """Captions after `{image}`, scored by CIDEr-D relative to that of a reference."""
    corpus = world_records.corpus(Kind.CAPTIONS, **{"synthetic_share": 0.0, **source})
    corpus.to_document = CaptionTask.default_config().set(prompt="")
    return Benchmark.default_config().set(
        name="world_captions",
        corpus=corpus,
        scoring=relative_captions,
        blank_shots=_BLANK_SHOTS,
        headline="relative_CIDEr",
        num_examples=_NUM_EXAMPLES,
    )


def world_attributes(**source: Any) -> Benchmark.Config:
    """Color, shape and size of one of several objects."""
    return _questions("attributes", source)


def world_relations(**source: Any) -> Benchmark.Config:
    """Direction of an object from another."""
    return _questions("relations", source)


def world_counting(**source: Any) -> Benchmark.Config:
    """Number of objects of one color and shape among others."""
    return _questions("counting", source)


def world_print(**source: Any) -> Benchmark.Config:
    """The word on a sign, which no picture of training shows."""
    return _questions("print", source)


def world_details(**source: Any) -> Benchmark.Config:
    """Pattern of an object, of one or two pixels a line."""
    return _questions("details", source)


def world_knowledge(**source: Any) -> Benchmark.Config:
    """Name of a being with its home or food, which training states in texts alone."""
    return _questions("knowledge", source)


def world_facts(**source: Any) -> Benchmark.Config:
    """Facts about beings, without pictures: home, food, and comparisons of weights."""
    return _options("facts", source)


def world_grammar(**source: Any) -> Benchmark.Config:
    """Agreement of a verb with its subject, after other nouns."""
    return _options("grammar", source)


def _questions(topic: str, source: dict[str, Any]) -> Benchmark.Config:
    return Benchmark.default_config().set(
        name=f"world_{topic}",
        corpus=world_records.corpus(Kind.QUESTIONS, topics=(topic,), **source),
        scoring=accuracy_by_kind,
        blank_shots=_BLANK_SHOTS,
        stop_strings=("\n", ".", ",", "Question"),
        num_examples=_NUM_EXAMPLES,
    )


def _options(asks: str, source: dict[str, Any]) -> Benchmark.Config:
    corpus = Corpus.default_config().set(
        name=f"world_{asks}",
        source=WorldTextTasks.default_config().set(asks=asks, **source),
        to_document=QuestionTask.default_config().set(prompt="{question}"),
    )
    return Benchmark.default_config().set(
        name=f"world_{asks}",
        corpus=corpus,
        scoring=option_accuracy,
        asking=compare_options,
        shows_images=False,
        shots=(0,),
        blank_shots=(),
        answer_joiner=" ",
        exemplar_separator=". ",
        headline="acc",
        headline_scale=1.0,
        num_examples=3 * _NUM_EXAMPLES,
    )
