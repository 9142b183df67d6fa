"""A benchmark's files of predictions: how they become items, and which function scores these."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mm1_jax.evals.predictions import pairing
from mm1_jax.evals.predictions.files import SUFFIXES
from mm1_jax.evals.predictions.records import Record
from mm1_jax.evals.scoring.items import Item, Scoring, scores

# Numbers under their names; groups of them may nest.
Metrics = dict[str, Any]


@dataclass
class ScoringJob:
    """Input of scoring besides the predictions, and remarks about the scores.

    Attributes:
        annotations: A file of references, where the predictions do not hold them.
        java_metrics: Captions are scored with these too, METEOR or SPICE.
        notes: Facts about the scores for the user, which readers add.
        remarks: Numbers about the scores by prediction file, which readers add.
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
        """Keeps the notes on the pairs, and returns them."""
        self.notes += pairs.notes
        if pairs.by_order:
            self.remarks[path] = {"paired_by_order": len(pairs.values)}
        return pairs.values


def prediction_files(folder: Path) -> list[Path]:
    """The files of a folder that may hold predictions."""
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)


@dataclass(frozen=True)
class Scorer:
    """Scores prediction files of a benchmark.

    Attributes:
        layout: The content of a file, for `--list`.
        annotations: The content of the annotations, for `--list`.
        read: Reads the items of a file.
        metrics: Scores the items of a file.
        files: The files of a folder that hold predictions of this benchmark.
        name: The name of the scores of a file.
        group: The name of the scores of an item, where that is not the name of its file.
        scorable: The files that have all that is needed; the others are left out, with a note.
        together: Scores that several files have together, where all of them are there.
    """

    layout: str
    read: Callable[[Path, ScoringJob], Sequence[Any]]
    metrics: Callable[[Sequence[Any], ScoringJob], Metrics]
    annotations: str = ""
    files: Callable[[Path], list[Path]] = prediction_files
    name: Callable[[Path], str] = lambda path: path.stem
    group: Callable[[Any], str] | None = None
    together: Callable[[Mapping[str, Metrics]], dict[str, Metrics]] = lambda scores: {}
    scorable: Callable[[Sequence[Path], ScoringJob], Sequence[Path]] = lambda paths, job: paths

    def score(self, paths: Sequence[Path], job: ScoringJob) -> dict[str, Metrics]:
        """The scores of some files, by name, and those of all of them together."""
        paths = self.scorable(paths, job)
        if self.group is None:
            scores = self._by_file(paths, job)
        else:
            groups: dict[str, list[Any]] = {}
            for item in (item for path in paths for item in self.read(path, job)):
                groups.setdefault(self.group(item), []).append(item)
            scores = {name: self.metrics(items, job) for name, items in groups.items()}
        return scores | self.together(scores)

    def score_file(self, path: Path, job: ScoringJob) -> Metrics:
        """The scores of one file."""
        return self.metrics(self.read(path, job), job) | job.remarks.get(path, {})

    def _by_file(self, paths: Sequence[Path], job: ScoringJob) -> dict[str, Metrics]:
        found: dict[str, Metrics] = {}
        for path in paths:
            if (name := self.name(path)) in found:
                raise ValueError(
                    f"{path}: another file of the folder has scores called {name!r}; rename one of "
                    "the two"
                )
            found[name] = self.score_file(path, job)
        return found


def number_and_scores(scoring: Scoring) -> Callable[[Sequence[Item], ScoringJob], Metrics]:
    """The number of items, `n`, and the scores of a function."""
    return lambda items, job: {"n": len(items), **scores(scoring(items))}
