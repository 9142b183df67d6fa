"""easy-VQA: questions about one colored shape (V. Zhou, 2019), in the layout of VQAv2."""

from mm1_jax.data.corpora.base import Corpus
from mm1_jax.evals.benchmark import Benchmark
from mm1_jax.evals.scoring.exact_match import accuracy_by_answer


def easy_vqa(corpus: Corpus.Config) -> Benchmark.Config:
    """Answers to `{image} Question: is the shape red? Short answer:`, for every question.

    All ten answers to a question are equal, so VQA accuracy reduces to an exact match.
    """
    return Benchmark.default_config().set(
        name="easy_vqa",
        corpus=corpus,
        scoring=accuracy_by_answer,
        stop_strings=("\n", ".", ",", "Question"),
        max_new_tokens=8,
    )
