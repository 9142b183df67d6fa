"""The rows that this process makes of every batch, and global arrays of them.

A process makes the rows of the batch that its devices hold, and no others; where the mesh splits
more than the batch, several processes make the same rows. What a row is does not depend on who
makes it, so a batch has the same bits whatever the processes.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mm1_jax.batch import Batch
from mm1_jax.multihost import distributed


class Part(NamedTuple):
    """Consecutive rows of a batch."""

    rows: range
    batch: Batch


def host_rows(shardings: Batch, num_rows: int) -> list[range]:
    """The rows that the devices of this process hold, as runs that do not touch."""
    places = shardings.tokens.addressable_devices_indices_map((num_rows, 1))
    spans = sorted({rows.indices(num_rows)[:2] for rows, _ in places.values()})
    runs: list[range] = []
    for start, stop in spans:
        if runs and start <= runs[-1].stop:
            runs[-1] = range(runs[-1].start, max(stop, runs[-1].stop))
        else:
            runs.append(range(start, stop))
    return runs


def place_parts(parts: Sequence[Part], shardings: Batch, num_rows: int) -> Batch:
    """The global batch of `num_rows` rows of which this process has these."""

    def place(sharding: Any, *arrays: np.ndarray) -> jax.Array:
        # Of tokens a row has one, and of pictures its share of the buffer.
        length = len(arrays[0]) * num_rows // len(parts[0].rows)

        def shard(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(length)
            for part, array in zip(parts, arrays, strict=True):
                first = part.rows.start * length // num_rows
                if first <= start and stop <= first + len(array):
                    return array[(slice(start - first, stop - first), *index[1:])]
            raise AssertionError(f"{index} of the batch is not of this process")

        shape = (length, *arrays[0].shape[1:])
        return jax.make_array_from_callback(shape, sharding, shard)

    return jax.tree.map(place, shardings, *(part.batch for part in parts))


class HostBatches(Iterator[Batch | Sequence[Part]]):
    """This process's rows of batch after batch, and the state of the whole input.

    A single process gets whole batches.
    """

    def __init__(self, input: Any, shardings: Batch):
        self._input = input
        if distributed.process_count() == 1:
            self._rows = [range(input.batch_size)]
            self._iterators = [input.iterator()]
            self._made: list[Part] = []
            return
        self._rows = host_rows(shardings, input.batch_size)
        num_workers = -(-input.num_workers // len(self._rows))
        self._iterators = [input.iterator(rows, num_workers) for rows in self._rows]
        # Parts of the next batch: what is made stays, should the next one fail.
        self._made = []

    def __next__(self) -> Batch | Sequence[Part]:
        if distributed.process_count() == 1:
            return next(self._iterators[0])
        for rows, iterator in list(zip(self._rows, self._iterators, strict=True))[
            len(self._made) :
        ]:
            self._made.append(Part(rows, next(iterator)))
        parts, self._made = self._made, []
        return parts

    def restart(self) -> None:
        """Ends the workers; new ones go on with the batch that is next."""
        self.close()

    def get_state(self) -> Any:
        """That of all rows, which process 0 gets; the others get None."""
        if distributed.process_count() == 1:
            return self._iterators[0].get_state()
        gathered = distributed.gather([each.get_state() for each in self._iterators])
        if gathered is None:
            return None
        return self._input.merge_states([state for states in gathered for state in states])

    def set_state(self, state: Any) -> None:
        for iterator in self._iterators:
            iterator.set_state(state)

    def accounting(self) -> Any:
        """What each corpus has given over all rows, for process 0; None for the others."""
        if distributed.process_count() == 1:
            return self._iterators[0].accounting()
        state = self.get_state()
        return None if state is None else self._input.accounting(state)

    def close(self) -> None:
        for iterator in self._iterators:
            iterator.close()
