"""What a scorer is: the prediction files of one benchmark in, scores by name out."""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mm1_jax.evals.predictions.records import SUFFIXES

# Numbers under their names; groups of them may nest.
Metrics = dict[str, Any]


@dataclass
class ScoringJob:
    """What to score besides the predictions, and what there is to say about it.

    Attributes:
        annotations: A file of references, where the predictions do not hold them.
        java_metrics: Captions are scored with these too, METEOR or SPICE.
        notes: Filled with what the user should know about the scores.
    """

    annotations: Path | None = None
    java_metrics: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)


class Scorer(abc.ABC):
    """Scores prediction files of a benchmark."""

    # What a file holds, and the annotations, for `--list`.
    layout: ClassVar[str]
    annotations: ClassVar[str] = ""

    def files(self, folder: Path) -> list[Path]:
        """The files of a folder that hold predictions of this benchmark."""
        return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)

    def name(self, path: Path) -> str:
        """What the scores of a file are called."""
        return path.stem

    def score(self, paths: Sequence[Path], job: ScoringJob) -> dict[str, Metrics]:
        """The scores of some files, by name, and those of all of them together."""
        scores = {self.name(path): self.score_file(path, job) for path in paths}
        return scores | self.score_together(scores)

    def score_together(self, scores: Mapping[str, Metrics]) -> dict[str, Metrics]:
        """Scores that several files have together, where all of them are there."""
        return {}

    @abc.abstractmethod
    def score_file(self, path: Path, job: ScoringJob) -> Metrics: ...
