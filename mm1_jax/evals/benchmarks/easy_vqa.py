"""easy-VQA: questions about one coloured shape (V. Zhou, 2019), in the layout of VQAv2."""

from collections.abc import Sequence

from mm1_jax.config import config_class
from mm1_jax.evals.benchmarks.base import Benchmark, Verdict
from mm1_jax.evals.metrics.answers import mean

_SHAPES = ("circle", "rectangle", "triangle")


class EasyVQA(Benchmark):
    """`{image} Question: is the shape red? Short answer:`, once for every question.

    All ten answers of a question are equal, so VQA accuracy is whether the answer is that one.
    """

    @config_class
    class Config(Benchmark.Config):
        name: str = "easy_vqa"
        stop_strings: tuple[str, ...] = ("\n", ".", ",", "Question")
        max_new_tokens: int = 8

    def score(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        """The accuracy, of all questions and of each kind of answer."""
        by_kind: dict[str, list[bool]] = {"accuracy": []}
        for verdict in verdicts:
            by_kind["accuracy"].append(verdict.correct)
            by_kind.setdefault(f"{_kind(verdict.reference)}_accuracy", []).append(verdict.correct)
        return {name: mean(correct) for name, correct in sorted(by_kind.items())}


def _kind(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes_no"
    return "shape" if answer in _SHAPES else "colour"
