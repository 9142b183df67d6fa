"""easy-VQA: questions about one coloured shape (V. Zhou, 2019), in the layout of VQAv2."""

from collections.abc import Sequence

import numpy as np

from mm1_jax.config import config_class
from mm1_jax.evals.benchmarks.base import Benchmark, Verdict

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

    def columns(self, verdicts: Sequence[Verdict]) -> dict[str, np.ndarray]:
        """The accuracy, of all questions and of each kind of answer."""
        kinds = np.array([_kind(verdict.reference) for verdict in verdicts])
        correct = np.array([bool(verdict.correct) for verdict in verdicts], float)
        by_kind = {
            f"{kind}_accuracy": np.where(kinds == kind, correct, np.nan)
            for kind in sorted(set(kinds.tolist()))
        }
        return {"accuracy": correct} | by_kind


def _kind(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes_no"
    return "shape" if answer in _SHAPES else "colour"
