"""Held-out scans of handwritten digits: the question for the digit, and captions."""

from collections.abc import Sequence

from mm1_jax.data.chat_formats.mm1 import MM1ChatFormat
from mm1_jax.data.corpora import digits
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.evals.benchmark import Benchmark
from mm1_jax.evals.prompts import ChatTask
from mm1_jax.evals.scoring.exact_match import accuracy, exact_captions


def digits_vqa() -> Benchmark.Config:
    """Answers to `{image} Question: what digit is this? Short answer:`, once per held-out scan."""
    return Benchmark.default_config().set(
        name="digits_vqa",
        corpus=digits.corpus(Kind.QUESTIONS),
        records=first_question_of_each_scan,
        scoring=accuracy,
        stop_strings=("\n", ".", ",", "Question"),
    )


def digits_chat() -> Benchmark.Config:
    """`digits_vqa` as a chat: a turn of question and instruction; exemplars are earlier turns."""
    cfg = digits_vqa().set(name="digits_chat", stop_strings=("\n",), blank_shots=())
    cfg.corpus.to_document = ChatTask.default_config().set(
        chat_format=MM1ChatFormat.default_config()
    )
    return cfg


def first_question_of_each_scan(corpus: Corpus) -> Sequence[int]:
    """Returns the index of the first question for the digit of each scan."""
    first: dict[bytes, int] = {}
    for index in range(len(corpus)):
        record = corpus.source[index]
        if record["kind"] == "digit":
            first.setdefault(record["images"][0].tobytes(), index)
    return sorted(first.values())


def digits_caption() -> Benchmark.Config:
    """Captions after `{image}`, which must match word for word."""
    return Benchmark.default_config().set(
        name="digits_caption", corpus=digits.corpus(Kind.CAPTIONS), scoring=exact_captions
    )
