"""Held-out rendered scenes: questions of several kinds, and the caption."""

from collections import defaultdict
from collections.abc import Sequence

from mm1_jax.config import config_class
from mm1_jax.data.corpora import scenes
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.evals.benchmarks.base import Benchmark, Verdict
from mm1_jax.evals.metrics.answers import majority_count, mean


class ScenesVQA(Benchmark):
    """Questions about one scene or two, with the accuracy of each kind.

    Beside it stands the accuracy of one who reads the question but sees nothing: who gives to every
    question the most frequent answer of its kind.
    """

    @config_class
    class Config(Benchmark.Config):
        name: str = "scenes_vqa"
        corpus: Corpus.Config = scenes.corpus(Kind.QUESTIONS)
        stop_strings: tuple[str, ...] = ("\n", ".", ",", "Question")
        num_examples: int | None = 400

    def score(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        families: dict[str, list[Verdict]] = defaultdict(list)
        for verdict in verdicts:
            families[verdict.task.record["kind"]].append(verdict)
        majority = sum(
            majority_count([v.reference for v in family]) for family in families.values()
        )
        metrics = {
            "accuracy": mean([verdict.correct for verdict in verdicts]),
            "majority_accuracy": majority / len(verdicts),
        }
        for kind, family in sorted(families.items()):
            metrics[f"accuracy_{kind}"] = mean([verdict.correct for verdict in family])
        return metrics


class ScenesCaption(Benchmark):
    """`{image}`, to be followed by the caption word for word."""

    @config_class
    class Config(Benchmark.Config):
        name: str = "scenes_caption"
        corpus: Corpus.Config = scenes.corpus(Kind.CAPTIONS)
        num_examples: int | None = 240

    def score(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        return {"exact_match": mean([verdict.correct for verdict in verdicts])}
