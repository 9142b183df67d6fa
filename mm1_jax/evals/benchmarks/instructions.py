"""Held-out instructions about the embedded pictures: right answers and right forms."""

from mm1_jax.data.chat_formats.mm1 import MM1ChatFormat
from mm1_jax.data.corpora import instructions as corpora
from mm1_jax.evals.benchmark import Benchmark
from mm1_jax.evals.scoring.instructions import instructions as scores


def instructions() -> Benchmark.Config:
    """All forms in turn; `well_formed` is the fraction of answers in the form that is asked for."""
    corpus = corpora.corpus(num_records=2880)
    corpus.to_document.chat_format = MM1ChatFormat.default_config()
    return Benchmark.default_config().set(
        name="instructions",
        corpus=corpus,
        scoring=scores,
        shots=(0,),
        max_new_tokens=48,
    )
