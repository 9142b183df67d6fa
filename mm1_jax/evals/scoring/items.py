"""Interface of all scoring functions, from items (answered records) to a `Scored`.

Answers of a model and answers in a file of predictions are scored by the same function:

    def exact_match(items: Sequence[Item]) -> Scored: ...
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from mm1_jax.evals.answers import Answer, Likelihood, OptionAnswer, TextAnswer


@dataclass(frozen=True)
class Item:
    """A record with its references, and the answer to it.

    Attributes:
        key: The id of the record.
        reference: The answer in the record's document, if the item is a task of a benchmark.
    """

    record: Mapping[str, Any]
    answer: Answer
    key: str = ""
    reference: str = ""

    @property
    def text(self) -> str:
        """The generated text."""
        assert isinstance(self.answer, TextAnswer), "a benchmark that generates answers"
        return self.answer.text

    @property
    def likelihoods(self) -> tuple[Likelihood, ...]:
        """The likelihoods of the options."""
        assert isinstance(self.answer, OptionAnswer), "a benchmark that compares likelihoods"
        return self.answer.likelihoods

    @property
    def has_reference(self) -> bool:
        """False for records of a split that is published without answers."""
        return bool(self.record.get("answers", self.record.get("captions", True)))

    @property
    def answer_text(self) -> str:
        """The answer as text: the generated text, or the most likely option."""
        if isinstance(self.answer, TextAnswer):
            return self.answer.text
        return self.record["options"][self.answer.best]


class Tally(NamedTuple):
    """Sum of a column over its examples, and their number, for each bootstrap draw."""

    total: Float[np.ndarray, "draws"]
    number: Float[np.ndarray, "draws"]

    @property
    def mean(self) -> Float[np.ndarray, "draws"]:
        """The mean of the column; NaN where it has no examples."""
        mean = self.total / np.maximum(self.number, 1)
        return np.where(self.number > 0, mean, np.nan)


# Values of all examples by column; NaN for an example that does not belong to the column.
Columns = Mapping[str, Float[np.ndarray, "examples"]]
# Tallies of the columns -> scores by name, elementwise over draws.
Combine = Callable[[Mapping[str, Tally]], Mapping[str, Float[np.ndarray, "draws"]]]


def means(tallies: Mapping[str, Tally]) -> dict[str, np.ndarray]:
    """Returns the mean of each column under its name."""
    return {name: tally.mean for name, tally in tallies.items()}


def percentages(tallies: Mapping[str, Tally]) -> dict[str, np.ndarray]:
    """Returns 100 times the mean of each column under its name."""
    return {name: 100 * tally.mean for name, tally in tallies.items()}


@dataclass(frozen=True)
class Scored:
    """Values of every item, in the order of the items, and the function that combines them.

    Attributes:
        correct: Whether each answer is right; None if that is not decided.
        columns: Values from which the scores are computed.
        combine: Computes the scores from the tallies of the columns.
        units: Name of the bootstrap unit of each item, such as the picture shared by several
            questions; None makes each item a unit.
        chosen: Each answer as text, if it is not `Item.answer_text`.
        quality: Quality of each answer, if neither the headline nor `correct` gives it.
    """

    correct: Sequence[bool | None]
    columns: Columns
    combine: Combine = means
    units: Sequence[str] | None = None
    chosen: Sequence[str] | None = None
    quality: Float[np.ndarray, "examples"] | None = None


Scoring = Callable[[Sequence[Item]], Scored]


def scores(scored: Scored) -> dict[str, float]:
    """Returns the scores over all items. A score without items is left out."""
    found = scored.combine({name: tally(values) for name, values in scored.columns.items()})
    return {name: float(value[0]) for name, value in found.items() if not np.isnan(value[0])}


def tally(values: Float[np.ndarray, "examples"]) -> Tally:
    """Returns the tally of all examples. The sum is rounded once, so their order is irrelevant."""
    part = values[~np.isnan(values)]
    return Tally(np.array([math.fsum(part)]), np.array([float(len(part))]))


def of_group(values: Any, groups: Sequence[Any], group: Any) -> Float[np.ndarray, "examples"]:
    """Returns the column of one group: the values of its examples, and NaN for all others."""
    is_member = np.array([each == group for each in groups], bool)
    return np.where(is_member, np.asarray(values, float), np.nan)


def quality(scored: Scored, headline: str | None) -> Float[np.ndarray, "examples"]:
    """Returns the quality of each answer: by the headline if it is a column, else by `correct`."""
    if scored.quality is not None:
        return scored.quality
    if headline is not None and headline in scored.columns:
        each = {
            name: Tally(np.nan_to_num(values), (~np.isnan(values)).astype(float))
            for name, values in scored.columns.items()
        }
        return scored.combine(each)[headline]
    return np.array([np.nan if x is None else x for x in scored.correct], float)
