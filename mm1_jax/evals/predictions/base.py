"""What a scorer is: the prediction files of one benchmark in, scores by name out."""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mm1_jax.evals.predictions import pairing
from mm1_jax.evals.predictions.files import SUFFIXES
from mm1_jax.evals.predictions.records import Record

# Numbers under their names; groups of them may nest.
Metrics = dict[str, Any]


@dataclass
class ScoringJob:
    """What to score besides the predictions, and what there is to say about it.

    Attributes:
        annotations: A file of references, where the predictions do not hold them.
        java_metrics: Captions are scored with these too, METEOR or SPICE.
        notes: Facts about the scores for the user, which scorers add.
        remarks: Numbers about the scores by prediction file, which scorers add.
    """

    annotations: Path | None = None
    java_metrics: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)
    remarks: dict[Path, Metrics] = field(default_factory=dict)

    def paired(
        self, path: Path, *names: str, may_repeat: bool = False
    ) -> list[tuple[Record, Record]]:
        """Pairs the predictions of a file with the references; see `pairing.paired`."""
        return self.accept(
            path, pairing.paired(path, self.annotations, *names, may_repeat=may_repeat)
        )

    def accept(self, path: Path, pairs: pairing.Pairs) -> list[tuple[Record, Record]]:
        """Keeps what is to be said of the pairs, and returns them."""
        self.notes += pairs.notes
        if pairs.by_order:
            self.remarks[path] = {"paired_by_order": len(pairs.values)}
        return pairs.values


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
        scores: dict[str, Metrics] = {}
        for path in paths:
            if (name := self.name(path)) in scores:
                raise ValueError(
                    f"{path}: another file of the folder has scores called {name!r}; rename one of "
                    "the two"
                )
            scores[name] = self.score_file(path, job) | job.remarks.get(path, {})
        return scores | self.score_together(scores)

    def score_together(self, scores: Mapping[str, Metrics]) -> dict[str, Metrics]:
        """Scores that several files have together, where all of them are there."""
        return {}

    @abc.abstractmethod
    def score_file(self, path: Path, job: ScoringJob) -> Metrics: ...
