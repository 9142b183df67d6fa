"""Counts of what training has consumed from each corpus, and the limit on bad documents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Int

from mm1_jax.data.packing import PlannedRow
from mm1_jax.data.quarantine import Quarantined, check_bad_fraction
from mm1_jax.image_buffer import RowSlots

# The bad fraction is taken of at least this many documents, or of a whole epoch if it is shorter.
_LEAST_DOCUMENTS = 1000


@dataclass(frozen=True)
class Consumed:
    """Documents, tokens and images consumed from a corpus so far.

    `documents` includes the bad ones and those that overflowed, i.e. whose images found no room in
    the image buffer of their rows. Neither kind is scored.
    """

    documents: int
    tokens: int
    images: int
    bad_documents: int
    overflowed: int


# A row per corpus; the columns are the fields of `Consumed`.
Counts = Int[np.ndarray, "corpora 5"]


def empty_counts(num_corpora: int) -> Counts:
    """Returns counts of nothing."""
    return np.zeros((num_corpora, len(fields(Consumed))), np.int64)


def count_rows(
    corpus_names: Sequence[str],
    planned: Sequence[PlannedRow],
    slots: Sequence[RowSlots],
    quarantined: Sequence[Quarantined],
) -> Counts:
    """Counts what the planned rows consume from each corpus."""
    counts = empty_counts(len(corpus_names))
    for row, row_slots in zip(planned, slots, strict=True):
        for record, numbers in zip(row.records, row_slots, strict=True):
            counts[record.corpus, :3] += (1, record.num_tokens, record.num_images)
            counts[record.corpus, 4] += any(i < 0 for i in numbers)
    for entry in quarantined:
        counts[corpus_names.index(entry.corpus), 3] += 1
    return counts


class Accounting:
    """Per-corpus counts. After a restart with other rows, earlier counts are those of all hosts."""

    def __init__(self, num_usable: Mapping[str, int], max_bad_fraction: float):
        """`num_usable` is the number of examples per epoch of each corpus, by name."""
        self._num_usable = num_usable
        self._max_bad_fraction = max_bad_fraction
        self._before = empty_counts(len(num_usable))
        self._since = np.zeros_like(self._before)

    def add(self, counts: Counts) -> None:
        """Adds counts; raises ValueError if too many documents of a corpus are bad."""
        self._since = self._since + counts
        totals = self._before + self._since
        for i, (name, num_usable) in enumerate(self._num_usable.items()):
            if totals[i, 3]:
                check_bad_fraction(
                    name,
                    bad=int(totals[i, 3]),
                    documents=int(totals[i, 0]),
                    least=min(_LEAST_DOCUMENTS, num_usable),
                    limit=self._max_bad_fraction,
                )

    def get_state(self) -> dict[str, dict[str, list[int]]]:
        return {
            "consumed_before": self._by_corpus(self._before),
            "consumed": self._by_corpus(self._since),
        }

    def set_state(self, state: Mapping[str, Any], *, is_of_these_rows: bool) -> None:
        """Restores a saved state; counts of other rows are added to the totals from before."""
        before, since = (
            np.array([state[key][name] for name in self._num_usable], np.int64)
            for key in ("consumed_before", "consumed")
        )
        if not is_of_these_rows:
            before, since = before + since, np.zeros_like(since)
        self._before, self._since = before, since

    def report(self, state: Mapping[str, Any]) -> dict[str, dict[str, int | float]]:
        """Returns the counts and the epochs of each corpus, as of a saved state."""
        reports = {}
        for name, num_usable in self._num_usable.items():
            pairs = zip(state["consumed_before"][name], state["consumed"][name], strict=True)
            consumed = Consumed(*(before + since for before, since in pairs))
            reports[name] = {**vars(consumed), "epochs": consumed.documents / num_usable}
        return reports

    def _by_corpus(self, counts: np.ndarray) -> dict[str, list[int]]:
        return dict(zip(self._num_usable, counts.tolist(), strict=True))


def merge_accounts(states: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[int]]]:
    """Merges the states of parts of the rows, which agree on `consumed_before`, into one."""
    totals = {
        name: np.sum([before] + [state["consumed"][name] for state in states], axis=0).tolist()
        for name, before in states[0]["consumed_before"].items()
    }
    zeros = {name: [0] * len(counts) for name, counts in totals.items()}
    return {"consumed_before": totals, "consumed": zeros}
