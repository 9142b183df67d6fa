"""Held-out rendered scenes: questions of several kinds, captions, and made-up names."""

from typing import Any

from mm1_jax.batch import Document
from mm1_jax.data.chat_formats.mm1 import MM1ChatFormat
from mm1_jax.data.corpora import name_pages, scenes
from mm1_jax.data.corpora import scene_names as names
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.data.corpora.name_pages import NamePagesSource, name_document
from mm1_jax.data.corpora.questions import question_document
from mm1_jax.evals.benchmark import Benchmark
from mm1_jax.evals.prompts import ChatTask
from mm1_jax.evals.scoring.exact_match import (
    accuracy_by_kind,
    accuracy_of_names,
    exact_captions,
)

_STOP_STRINGS = ("\n", ".", ",", "Question")


def scenes_vqa() -> Benchmark.Config:
    """Questions about one or two scenes, with the accuracy per kind of question."""
    return Benchmark.default_config().set(
        name="scenes_vqa",
        corpus=scenes.corpus(Kind.QUESTIONS),
        scoring=accuracy_by_kind,
        stop_strings=_STOP_STRINGS,
        num_examples=400,
    )


def scenes_chat() -> Benchmark.Config:
    """`scenes_vqa` as a chat: a turn of question and instruction; exemplars are earlier turns."""
    cfg = scenes_vqa().set(name="scenes_chat", stop_strings=("\n",), blank_shots=())
    cfg.corpus.to_document = ChatTask.default_config().set(
        chat_format=MM1ChatFormat.default_config()
    )
    return cfg


def scenes_caption() -> Benchmark.Config:
    """Captions after `{image}`, which must match word for word."""
    return Benchmark.default_config().set(
        name="scenes_caption",
        corpus=scenes.corpus(Kind.CAPTIONS),
        scoring=exact_captions,
        num_examples=240,
    )


def scenes_names() -> Benchmark.Config:
    """Invented names of a shape or color, known only from the exemplars (`corpora.scene_names`).

    With two or more shots, the exemplars include what the query shows. Guessing one of the names in
    the exemplars is right half of the time; `heard` is the fraction of answers that are such a
    name. Without exemplars, one of sixteen names is right by chance.
    """
    return Benchmark.default_config().set(
        name="scenes_names",
        corpus=names.corpus(Kind.QUESTIONS),
        exemplars_of=exemplars_of_the_world,
        scoring=accuracy_of_names,
        stop_strings=_STOP_STRINGS,
        shots=(0, 2, 4, 8),
        blank_shots=(8,),
        num_examples=400,
        num_few_shot_examples=400,
    )


def exemplars_of_the_world(corpus: Corpus, index: int, shots: int) -> list[Document]:
    """Exemplars of the query's world, which include both of its names."""
    source = corpus.source
    assert isinstance(source, names.SceneNamesSource), "the corpus of the benchmark"
    return [question_document(record) for record in source.exemplars(index, shots)]


def name_binding(name: str = "name_binding", **source: Any) -> Benchmark.Config:
    """Names that exemplars gave to shapes or colors (`corpora.name_pages`).

    The exemplars include what the query shows, so one of the names in them is right half of the
    time by chance, and almost always by binding. `heard` is the fraction of answers that are one of
    these names.

    Args:
        name: Name of the benchmark in metric keys.
        source: Fields of `NamePagesSource`.
    """
    return Benchmark.default_config().set(
        name=name,
        corpus=name_pages.corpus("name_binding", Kind.QUESTIONS, num_records=8192, **source),
        exemplars_of=exemplars_of_the_names,
        scoring=accuracy_of_names,
        stop_strings=_STOP_STRINGS,
        max_new_tokens=8,
        shots=(4, 8),
        blank_shots=(),
        num_few_shot_examples=400,
    )


def swapped_name_binding(name: str = "name_binding_swapped", **source: Any) -> Benchmark.Config:
    """`name_binding` with the two names swapped in the exemplars: bound names are never right."""
    return name_binding(name, **source).set(exemplars_of=swapped_exemplars_of_the_names)


def exemplars_of_the_names(corpus: Corpus, index: int, shots: int) -> list[Document]:
    """Exemplars of the query's page, which include both of its names."""
    return _of_the_names(corpus, index, shots, swapped=False)


def swapped_exemplars_of_the_names(corpus: Corpus, index: int, shots: int) -> list[Document]:
    """Exemplars of the query's page, whose pictures have the names of each other."""
    return _of_the_names(corpus, index, shots, swapped=True)


def _of_the_names(corpus: Corpus, index: int, shots: int, swapped: bool) -> list[Document]:
    source = corpus.source
    assert isinstance(source, NamePagesSource), "the corpus of the benchmark"
    return [name_document(record) for record in source.exemplars(index, shots, swapped=swapped)]
