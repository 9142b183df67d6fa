"""Iterates over the given rows of successive batches, with a state from which it resumes.

The state is that of the plan as of the last batch returned, and takes a few kB.
"""

import copy
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags
from grain.experimental import ThreadPrefetchIterDataset

from mm1_jax.data.accounting import Accounting, merge_accounts
from mm1_jax.data.batches import Batches, BatchMaker, Report
from mm1_jax.data.lent_arrays import Borrower, LentArray
from mm1_jax.data.quarantine import Quarantine


class InputIterator(Iterator[Any]):
    """Yields the given rows of successive batches, of the type that the `BatchMaker` makes.

    The `image_index` of packed rows counts in the image buffer of the global batch; a batch holds
    the part of that buffer that belongs to its rows. If the rows cut a group that shares slots,
    about twice as many images are decoded.
    """

    def __init__(
        self,
        maker: BatchMaker,
        rows: range,
        *,
        accounting: Accounting,
        quarantine: Quarantine,
        fingerprint: Mapping[str, Any],
        num_workers: int,
        prefetch: int,
    ):
        """Raises ValueError if there is no batch of these rows alone."""
        planner = maker.planner(rows)
        self.rows = rows
        self._maker = maker
        self._num_workers = num_workers
        self._prefetch = prefetch
        self._step = planner.step
        self._next_index = planner.next_index
        self._accounting = accounting
        self._fingerprint = fingerprint
        self._quarantine = quarantine
        # Empty, or the one grain iterator in use. It is closed at the latest when the interpreter
        # exits: a thread that is then inside a C++ library would abort the process.
        self._batches: list[grain.DatasetIterator] = []
        weakref.finalize(self, _close, self._batches)

    def __next__(self) -> Any:
        if not self._batches:
            self._batches.append(self._start())
        batch = dict(next(self._batches[0]))
        report: Report = batch.pop("report")
        self._step += 1
        self._next_index = report.next_index
        self._quarantine.add(report.quarantined)
        self._accounting.add(report.consumed)
        if self._num_workers:
            # Other arrays lie in memory with a name, which must not outlive this process.
            batch = {
                name: self._borrower.open(x) if isinstance(x, LentArray) else np.array(x)
                for name, x in batch.items()
            }
        return self._maker.batch_type(**batch)

    @property
    def step(self) -> int:
        """The step of the next batch."""
        return self._step

    def accounting(self) -> dict[str, dict[str, int | float]]:
        """Returns the counts and the epochs of each corpus, as of the last batch.

        They cover the rows of this iterator; sum them over hosts, epochs included.
        """
        return self._accounting.report(self.get_state())

    def get_state(self) -> dict[str, Any]:
        """Returns the state as of the last batch returned, in JSON types."""
        return {
            "step": self._step,
            "rows": [self.rows.start, self.rows.stop],
            "next_index": self._next_index.tolist(),
            **self._accounting.get_state(),
            "fingerprint": copy.deepcopy(dict(self._fingerprint)),
        }

    def set_state(self, state: Mapping[str, Any]):
        """Restores a saved state of this Input, or of any other that makes the same batches."""
        _check_fingerprint(state["fingerprint"], self._fingerprint)
        planner = self._maker.planner(self.rows)
        planner.restore(state["step"], np.array(state["next_index"], np.int64))
        self.close()
        self._step = planner.step
        self._next_index = planner.next_index
        is_of_these_rows = list(state["rows"]) == [self.rows.start, self.rows.stop]
        self._accounting.set_state(state, is_of_these_rows=is_of_these_rows)

    def close(self):
        """Stops the workers and discards prefetched batches; the next batch restarts them."""
        _close(self._batches)

    def _start(self) -> grain.DatasetIterator:
        lends = self._num_workers > 0
        batches = Batches(self._maker, self.rows, self._step, self._next_index, lends=lends)
        if self._num_workers:
            if not flags.FLAGS.is_parsed():
                # grain passes its own flags to the workers, and fails outside absl's app.run.
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(
                num_workers=self._num_workers, per_worker_buffer_size=max(1, self._prefetch)
            )
            self._borrower = Borrower()
            return iter(batches.mp_prefetch(options))
        if self._prefetch:
            return iter(ThreadPrefetchIterDataset(batches, prefetch_buffer_size=self._prefetch))
        return iter(batches)


def merge_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merges the states of iterators over parts of the batch into one of the whole batch.

    Iterators of the same rows, on hosts that share them, count once.
    """
    first = states[0]
    for state in states[1:]:
        _check_fingerprint(state["fingerprint"], first["fingerprint"])
        for name in ("step", "consumed_before"):
            if state[name] != first[name]:
                raise ValueError(
                    f"The states to merge must agree on {name!r}, but have {state[name]} and "
                    f"{first[name]}. Save on all hosts after the same step, from iterators that "
                    "were restored from the same state."
                )
    parts = sorted({tuple(state["rows"]): state for state in states}.items())
    for (a, _), (b, _) in zip(parts, parts[1:], strict=False):
        if a[1] != b[0]:
            raise ValueError(f"States of rows {a} and {b} overlap or leave a gap.")
    return {
        "step": first["step"],
        "rows": [parts[0][0][0], parts[-1][0][1]],
        "next_index": np.max([state["next_index"] for state in states], axis=0).tolist(),
        **merge_accounts([state for _, state in parts]),
        "fingerprint": copy.deepcopy(dict(first["fingerprint"])),
    }


def differences(saved: Mapping[str, Any], here: Mapping[str, Any], where: str) -> str:
    """Returns the fields in which two fingerprints differ, one per line."""
    return "\n".join(
        f"  {name}: {saved.get(name, 'absent')} {where}, {here.get(name, 'absent')} here"
        for name in sorted(saved.keys() | here.keys())
        if saved.get(name) != here.get(name)
    )


def _check_fingerprint(saved: Mapping[str, Any], here: Mapping[str, Any]):
    differing = differences(saved, here, "in the state")
    if differing:
        raise ValueError(
            "The state belongs to an input with different batches:\n"
            + differing
            + "\nUse the config that the state was saved with, or start without it."
        )


def _close(batches: list[grain.DatasetIterator]):
    while batches:
        batches.pop().close()
