"""Pairs predictions with annotations, and decides about missing and repeated items.

The annotations define which questions exist and how often each counts. Every question needs a
prediction, and every prediction needs a question. A repeated id is an error, except for benchmarks
whose official file repeats one: its rows are paired in order of appearance. Without annotations,
each prediction holds its own reference, and missing questions cannot be detected.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mm1_jax.evals.predictions.entries import Entry, read_entries

# Fields in predictions of some benchmarks that do not identify a question.
_NOT_ID_FIELDS = frozenset(
    ("prediction", "answer", "text", "response", "caption", "extraction", "content")
    + ("question", "prompt", "query", "label", "answers", "options", "category", "model_id")
)
_ID_NAME = re.compile(r"(?i).*(id|idx|index|key|hash)")


@dataclass(frozen=True)
class Pairs:
    """Predictions with the entries that hold their references, in the order of the annotations.

    Attributes:
        values: Pairs of prediction and reference; without annotations, both are the same entry.
        notes: Remarks on the pairing for readers of the scores.
        by_order: True if the predictions had no ids and were paired in order.
    """

    values: list[tuple[Entry, Entry]]
    notes: list[str] = field(default_factory=list)
    by_order: bool = False


def paired(
    path: Path,
    annotations: Path | None,
    *names: str,
    may_repeat: bool = False,
) -> Pairs:
    """Pairs the predictions of a file with the annotations.

    Args:
        names: Possible names of the id field; the first one in an entry counts.
        may_repeat: True if the official file of the benchmark repeats an id.

    Raises:
        ValueError: A question has no prediction or too many, or a prediction has no question.
    """
    predictions = read_entries(path)
    if annotations is None:
        return _self_paired(path, predictions, names, may_repeat)
    return match(path, predictions, annotations, read_entries(annotations), names, may_repeat)


def match(
    path: Path,
    predictions: Sequence[Entry],
    annotations: Path,
    references: Sequence[Entry],
    names: Sequence[str],
    may_repeat: bool = False,
) -> Pairs:
    """Pairs predictions with references: the entries of the annotations that were asked."""
    if not any(entry.has(*names) for entry in predictions):
        return _by_order(path, predictions, annotations, references, names)
    answers = _by_id(predictions, names, may_repeat)
    questions = _by_id(references, names, may_repeat)
    if extra := [key for key in answers if key not in questions]:
        raise ValueError(
            f"{answers[extra[0]][0].where}: {annotations} has no annotation for {extra[0]!r}; "
            f"{len(extra)} of {len(answers)} ids are not in it; give the annotations of the split "
            "that was asked"
        )
    if lacking := [key for key in questions if key not in answers]:
        raise ValueError(
            f"{path}: {len(lacking)} of the {len(questions)} questions of {annotations} have no "
            f"prediction, the first {lacking[0]!r}; answer all, or give the annotations of only "
            "those that were asked"
        )
    for key, entries in questions.items():
        if len(answers[key]) != len(entries):
            raise ValueError(
                f"{path}: has {len(answers[key])} predictions for {key!r}, but {annotations} has "
                f"it {len(entries)} times; there must be one for each"
            )
    place: Counter[str] = Counter()
    pairs = []
    for reference in references:
        key = reference.key(*names)
        pairs.append((answers[key][place[key]], reference))
        place[key] += 1
    return Pairs(pairs)


def _self_paired(
    path: Path, predictions: Sequence[Entry], names: Sequence[str], may_repeat: bool
) -> Pairs:
    by_id = _by_id([entry for entry in predictions if entry.has(*names)], names, may_repeat)
    repeated = [key for key, entries in by_id.items() if len(entries) > 1]
    notes = []
    if repeated:
        notes.append(
            f"{path}: {len(repeated)} ids occur more than once, such as {repeated[0]!r}, and each "
            "row counts"
        )
    return Pairs([(entry, entry) for entry in predictions], notes)


def _by_id(
    entries: Sequence[Entry], names: Sequence[str], may_repeat: bool
) -> Mapping[str, list[Entry]]:
    found: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        key = entry.key(*names)
        if found[key] and not may_repeat:
            raise ValueError(
                f"{entry.where}: {key!r} repeats the id at {found[key][0].where}; ids must be "
                "unique, so remove one of the two"
            )
        found[key].append(entry)
    return found


def _by_order(
    path: Path,
    predictions: Sequence[Entry],
    annotations: Path,
    references: Sequence[Entry],
    names: Sequence[str],
) -> Pairs:
    fields = dict.fromkeys(name for entry in predictions for name in entry.values)
    if candidates := [name for name in fields if _may_be_id(name, predictions)]:
        raise ValueError(
            f"{path}: no field is called {' or '.join(names)}; the fields are "
            f"{', '.join(map(repr, fields))}. {' or '.join(map(repr, candidates))} may be the id: "
            f"rename it to {names[0]}, or remove it if the predictions are in the order of "
            f"{annotations}"
        )
    if len(predictions) != len(references):
        raise ValueError(
            f"{path}: there are {len(predictions)} predictions and {len(references)} annotations "
            f"in {annotations}; without {' or '.join(names)} in the predictions, the numbers must "
            "be equal, and the order the same"
        )
    note = (
        f"{path}: the predictions have no ids, and were paired with {annotations} by their order; "
        f"add {names[0]} to be sure"
    )
    return Pairs(list(zip(predictions, references, strict=True)), [note], by_order=True)


def _may_be_id(name: str, entries: Sequence[Entry]) -> bool:
    """Returns True if the name looks like an id, or if most entries have distinct values there."""
    if name in _NOT_ID_FIELDS:
        return False
    if _ID_NAME.fullmatch(name):
        return True
    values = [entry.values.get(name) for entry in entries]
    ids = {
        str(value)
        for value in values
        if isinstance(value, str | int)
        and not isinstance(value, bool)
        or isinstance(value, float)
        and value.is_integer()
    }
    return 2 * len(ids) > len(entries)
