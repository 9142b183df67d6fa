"""Planned rows -> batches, prefetched by grain's workers.

Workers hold no state worth saving: each of them plans every step, which costs next to nothing, and
makes every n-th batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Int

from mm1_jax.batch import Batch
from mm1_jax.data.accounting import Counts, count_rows
from mm1_jax.data.lent_arrays import Lender
from mm1_jax.data.packing import Packing, PlannedRow, Planner
from mm1_jax.data.quarantine import Quarantined
from mm1_jax.data.rows import BufferPart, RowLoader, RowShape, concatenate
from mm1_jax.data.snapshot import Snapshot, SnapshotPlanner
from mm1_jax.image_buffer import ImageBuffer


@dataclass(frozen=True)
class Report:
    """Travels with a batch from the worker that makes it to the iterator that returns it."""

    next_index: Int[np.ndarray, "v k"]
    consumed: Counts
    quarantined: tuple[Quarantined, ...]


@runtime_checkable
class RowPlanner(Protocol):
    """Plans the given rows of successive batches; its state is `step` and `next_index`."""

    step: int
    next_index: Int[np.ndarray, "v k"]

    def next_rows(self) -> list[PlannedRow]:
        """Returns the rows of the current step and advances to the next."""
        ...

    def skip(self) -> None:
        """Advances to the next step."""
        ...

    def restore(self, step: int, next_index: Int[np.ndarray, "v k"]) -> None:
        """Moves to a saved step."""
        ...


@runtime_checkable
class RowPlan(Protocol):
    """The records of every row of every batch."""

    def planner(self, rows: range) -> RowPlanner:
        """Returns a planner of the given rows of every batch, at step 0."""
        ...


@runtime_checkable
class BatchMaker(Protocol):
    """Makes the given rows of any batch; sent to workers."""

    batch_type: ClassVar[type]

    def planner(self, rows: range) -> RowPlanner:
        """Returns a planner, at step 0, of the rows that `make` needs for these rows.

        Raises:
            ValueError: There is no batch of these rows alone.
        """
        ...

    def make(
        self,
        planned: Sequence[PlannedRow],
        rows: range,
        empty: Callable[..., np.ndarray] = np.empty,
    ) -> tuple[Any, Counts, list[Quarantined]]:
        """Makes the batch of these rows, counts their records, and lists the unusable ones.

        Args:
            empty: Makes the array of the pixels, without initial values.
        """
        ...


@dataclass(frozen=True)
class PackedBatchMaker:
    """Makes batches of packed rows, and the part of the image buffer that belongs to them."""

    batch_type: ClassVar[type] = Batch

    plan: Packing | Snapshot
    row_loader: RowLoader
    shape: RowShape
    image_buffer: ImageBuffer

    def planner(self, rows: range) -> Planner | SnapshotPlanner:
        """Returns a planner, at step 0, of these rows and of all that share slots with them."""
        self.image_buffer.slots(rows)  # Raises ValueError if they have no whole number of slots.
        return self.plan.planner(self.image_buffer.whole_groups(rows))

    def make(
        self,
        planned: Sequence[PlannedRow],
        rows: range,
        empty: Callable[..., np.ndarray] = np.empty,
    ) -> tuple[Batch, Counts, list[Quarantined]]:
        """Makes the batch of these rows; `planned` covers their whole groups.

        If `rows` cut a group, this part of the buffer may hold images of the group's other rows,
        which are loaded here too.
        """
        groups = self.image_buffer.whole_groups(rows)
        slots = self.image_buffer.place([row.num_images for row in planned], first_row=groups.start)
        part = BufferPart(self.image_buffer.slots(rows), self.shape.image_size, empty)
        loaded, quarantined = [], []
        for number, row, row_slots in zip(groups, planned, slots, strict=True):
            if number in rows:
                examples, bad = self.row_loader.load(row, row_slots, part)
                loaded.append(examples)
                quarantined += bad
            else:
                self.row_loader.load_images(row, row_slots, part)
        batch = concatenate(loaded, self.shape, part)
        own = slice(rows.start - groups.start, rows.stop - groups.start)
        counts = count_rows(self.row_loader.corpus_names, planned[own], slots[own], quarantined)
        return batch, counts, quarantined


class Batches(grain.IterDataset):
    """A dataset of batches as dicts with a `report`, starting at `step`; workers can share it."""

    def __init__(
        self,
        maker: BatchMaker,
        rows: range,
        step: int,
        next_index: np.ndarray,
        *,
        lends: bool = False,
    ):
        """With `lends`, for workers, the pixels of a batch are a `LentArray`."""
        super().__init__()
        self.lends = lends
        self.maker = maker
        self.rows = rows
        self.step = step
        self.next_index = next_index
        self.worker_slice = slice(0, None, 1)

    def set_slice(self, sl: slice, sequential_slice: bool = False):
        assert not sequential_slice
        self.worker_slice = sl

    def __iter__(self) -> "_BatchesIterator":
        return _BatchesIterator(self)


class _BatchesIterator(grain.DatasetIterator):
    def __init__(self, batches: Batches):
        super().__init__()
        self._batches = batches
        self._planner = batches.maker.planner(batches.rows)
        self._planner.restore(batches.step, batches.next_index)
        self._lender = Lender() if batches.lends else None

    def __next__(self) -> dict[str, Any]:
        worker_slice = self._batches.worker_slice
        while (self._planner.step - self._batches.step - worker_slice.start) % worker_slice.step:
            self._planner.skip()
        planned = self._planner.next_rows()
        next_index = self._planner.next_index.copy()
        lender, maker, rows = self._lender, self._batches.maker, self._batches.rows
        empty = np.empty if lender is None else lender.empty
        batch, counts, quarantined = maker.make(planned, rows, empty)
        arrays = {field.name: getattr(batch, field.name) for field in fields(batch)}
        if lender is not None:
            arrays = {name: lender.lend(array) for name, array in arrays.items()}
        return arrays | {"report": Report(next_index, counts, tuple(quarantined))}

    def get_state(self) -> dict[str, Any]:
        # Never used: a restart makes a new dataset from the state of the InputIterator.
        return {}

    def set_state(self, state: dict[str, Any]):
        raise NotImplementedError
