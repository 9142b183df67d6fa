"""Scorer of a benchmark's prediction files: it reads them as items and scores these."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mm1_jax.evals.predictions import pairing
from mm1_jax.evals.predictions.entries import Entry
from mm1_jax.evals.predictions.files import SUFFIXES
from mm1_jax.evals.scoring.items import Item, Scoring, scores

# Numbers by name, possibly in nested groups.
Metrics = dict[str, Any]


@dataclass
class ScoringJob:
    """Inputs of scoring besides the predictions, and remarks that readers add.

    Attributes:
        annotations: A file of references, if the predictions do not hold them.
        java_metrics: Additional metrics of captions, METEOR or SPICE.
        notes: Remarks on the scores for the user.
        remarks: Additional metrics by prediction file.
    """

    annotations: Path | None = None
    java_metrics: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)
    remarks: dict[Path, Metrics] = field(default_factory=dict)

    def paired(
        self, path: Path, *names: str, may_repeat: bool = False
    ) -> list[tuple[Entry, Entry]]:
        """Pairs the predictions of a file with the references; see `pairing.paired`."""
        return self.accept(
            path, pairing.paired(path, self.annotations, *names, may_repeat=may_repeat)
        )

    def accept(self, path: Path, pairs: pairing.Pairs) -> list[tuple[Entry, Entry]]:
        """Returns the pairs, and keeps the notes on them."""
        self.notes += pairs.notes
        if pairs.by_order:
            self.remarks[path] = {"paired_by_order": len(pairs.values)}
        return pairs.values


def prediction_files(folder: Path) -> list[Path]:
    """Returns the files of a folder that may hold predictions."""
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)


@dataclass(frozen=True)
class Scorer:
    """Scores prediction files of a benchmark.

    Attributes:
        layout: Description of a file's content, for `--list`.
        annotations: Description of the annotations, for `--list`.
        read: Reads the items of a file.
        metrics: Scores the items of a file.
        files: Returns the files of a folder that hold predictions of this benchmark.
        name: Returns the name of the scores of a file.
        group: Returns the name of the scores that an item belongs to; None groups items by file.
        joint: Computes joint scores of several files, if all of them are present.
        scorable: Returns the files that can be scored; the others are left out, with a note.
    """

    layout: str
    read: Callable[[Path, ScoringJob], Sequence[Any]]
    metrics: Callable[[Sequence[Any], ScoringJob], Metrics]
    annotations: str = ""
    files: Callable[[Path], list[Path]] = prediction_files
    name: Callable[[Path], str] = lambda path: path.stem
    group: Callable[[Any], str] | None = None
    joint: Callable[[Mapping[str, Metrics]], dict[str, Metrics]] = lambda scores: {}
    scorable: Callable[[Sequence[Path], ScoringJob], Sequence[Path]] = lambda paths, job: paths

    def score(self, paths: Sequence[Path], job: ScoringJob) -> dict[str, Metrics]:
        """Returns the scores of files by name, and their joint scores."""
        paths = self.scorable(paths, job)
        if self.group is None:
            scores = self._by_file(paths, job)
        else:
            groups: dict[str, list[Any]] = {}
            for item in (item for path in paths for item in self.read(path, job)):
                groups.setdefault(self.group(item), []).append(item)
            scores = {name: self.metrics(items, job) for name, items in groups.items()}
        return scores | self.joint(scores)

    def score_file(self, path: Path, job: ScoringJob) -> Metrics:
        """Returns the scores of one file."""
        return self.metrics(self.read(path, job), job) | job.remarks.get(path, {})

    def _by_file(self, paths: Sequence[Path], job: ScoringJob) -> dict[str, Metrics]:
        found: dict[str, Metrics] = {}
        for path in paths:
            if (name := self.name(path)) in found:
                raise ValueError(
                    f"{path}: another file in the folder also has the scores {name!r}; rename one "
                    "of the two"
                )
            found[name] = self.score_file(path, job)
        return found


def number_and_scores(scoring: Scoring) -> Callable[[Sequence[Item], ScoringJob], Metrics]:
    """Returns a function for the number of items, `n`, and the scores of a scoring function."""
    return lambda items, job: {"n": len(items), **scores(scoring(items))}
