"""Per-process loading of batches, and their placement as global arrays.

Each process loads only the rows that its own devices hold. If the mesh splits more than the batch,
several processes load the same rows. A row does not depend on the process that loads it, so a batch
is bit-identical for any number of processes.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Sharding

from mm1_jax.multihost import distributed


class LoadedRows(NamedTuple):
    """Consecutive rows of a batch."""

    rows: range
    batch: Any


class HostBatch(NamedTuple):
    """Rows of a batch of `num_rows` that this process loads; all rows if it is the only process."""

    num_rows: int
    parts: tuple[LoadedRows, ...]

    def place(self, shardings: Any) -> Any:
        """Places the batch on the devices as global arrays with these shardings."""

        def place(sharding: Sharding, *arrays: np.ndarray) -> jax.Array:
            # Tokens have one entry per row; images have several, the row's share of the buffer.
            length = len(arrays[0]) * self.num_rows // len(self.parts[0].rows)

            def shard(index: Any) -> np.ndarray:
                start, stop, _ = index[0].indices(length)
                for part, array in zip(self.parts, arrays, strict=True):
                    first = part.rows.start * length // self.num_rows
                    if first <= start and stop <= first + len(array):
                        return array[(slice(start - first, stop - first), *index[1:])]
                raise AssertionError(f"{index} of the batch is not of this process")

            shape = (length, *arrays[0].shape[1:])
            return jax.make_array_from_callback(shape, sharding, shard)

        return jax.tree.map(place, shardings, *(part.batch for part in self.parts))


def host_rows(sharding: Any, num_rows: int) -> list[range]:
    """Returns the rows that the devices of this process hold, as disjoint maximal ranges."""
    places = sharding.addressable_devices_indices_map((num_rows,))
    spans = sorted({rows.indices(num_rows)[:2] for (rows,) in places.values()})
    runs: list[range] = []
    for start, stop in spans:
        if runs and start <= runs[-1].stop:
            runs[-1] = range(runs[-1].start, max(stop, runs[-1].stop))
        else:
            runs.append(range(start, stop))
    return runs


class HostBatches(Iterator[HostBatch]):
    """Iterator over the rows of each batch that this process loads, with the global input state."""

    def __init__(self, input: Any, rows: Sharding | None):
        """Starts at the first batch.

        Args:
            rows: Sharding of the rows of a batch; only several processes need it.
        """
        self._input = input
        self._rows = [range(input.batch_size)]
        self._is_alone = distributed.process_count() == 1
        if rows is not None and not self._is_alone:
            self._rows = host_rows(rows, input.batch_size)
        self._begin()

    def _begin(self) -> None:
        if self._is_alone:
            self._iterators = [self._input.iterator()]
        else:
            num_workers = -(-self._input.num_workers // len(self._rows))
            self._iterators = [self._input.iterator(rows, num_workers) for rows in self._rows]
        # Parts of the next batch loaded so far; they are kept if loading a later part fails.
        self._loaded: list[LoadedRows] = []

    def __next__(self) -> HostBatch:
        for rows, iterator in list(zip(self._rows, self._iterators, strict=True))[
            len(self._loaded) :
        ]:
            self._loaded.append(LoadedRows(rows, next(iterator)))
        parts, self._loaded = tuple(self._loaded), []
        return HostBatch(self._input.batch_size, parts)

    def describe(self) -> str:
        return self._input.describe()

    def restart(self) -> None:
        """Stops the data workers; new ones resume with the next batch."""
        self.close()

    def rewind(self) -> None:
        """Restarts at the first batch."""
        self.close()
        self._begin()

    def get_state(self) -> Any:
        """Returns the state of the whole input in process 0; None in the others."""
        if self._is_alone:
            return self._iterators[0].get_state()
        gathered = distributed.gather([each.get_state() for each in self._iterators])
        if gathered is None:
            return None
        return self._input.merge_states([state for states in gathered for state in states])

    def set_state(self, state: Any) -> None:
        for iterator in self._iterators:
            iterator.set_state(state)

    def accounting(self) -> Any:
        """Returns counts per corpus over all rows in process 0; None in the others."""
        if self._is_alone:
            return self._iterators[0].accounting()
        state = self.get_state()
        return None if state is None else self._input.accounting(state)

    def close(self) -> None:
        for iterator in self._iterators:
            iterator.close()
