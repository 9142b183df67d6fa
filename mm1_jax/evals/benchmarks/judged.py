"""What benchmarks share whose answers are graded by a judge, a language model."""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mm1_jax.config import config_class
from mm1_jax.evals.benchmarks.base import Task, Verdict
from mm1_jax.evals.benchmarks.chat import ChatBenchmark
from mm1_jax.evals.judge import Judge


class Grades(NamedTuple):
    """What the judge made of the answers.

    Attributes:
        name: Of the file that holds the grades as official code and `--score_only` have them.
        content: Of that file.
        metrics: The scores of the grades.
    """

    name: str
    content: str
    metrics: Mapping[str, float]


class JudgedBenchmark(ChatBenchmark):
    """Open questions, answered at length; without a judge, answers are written and not scored."""

    @config_class
    class Config(ChatBenchmark.Config):
        # Answers have lines.
        stop_strings: tuple[str, ...] = ("USER:",)
        max_new_tokens: int = 512

    @abc.abstractmethod
    def grade(
        self, verdicts: Sequence[Verdict], judge: Judge, progress: Callable[[], object]
    ) -> Grades:
        """Asks the judge about every answer.

        Args:
            progress: Called at each request to the judge that is answered.

        Raises:
            ValueError: A file of the official grading is missing, or the judge cannot be asked.
        """

    @abc.abstractmethod
    def num_questions(self, verdicts: Sequence[Verdict]) -> int:
        """How many there are for the judge."""

    def judge(self, task: Task, answer: str) -> bool | None:
        """An answer is right to a degree, and only the judge says to which."""
        return None

    def score(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        return {"n": float(len(verdicts))}

    def quality(self, verdicts: Sequence[Verdict]) -> np.ndarray:
        """Known to the judge alone."""
        return np.full(len(verdicts), np.nan)

    def intervals(self, verdicts: Sequence[Verdict]) -> dict[str, tuple[float, float]]:
        return {}

    def _text_file(self, *names: str) -> Any:
        source: Any = self._queries.source
        return source.file(*names)
