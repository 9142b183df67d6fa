"""Rows of a batch, with their records and the counts of each corpus."""

from typing import Any, NamedTuple

from mm1_jax.data.mixed_input import MixedInput
from mm1_jax.data.packing import PlannedRow


class PlannedBatch(NamedTuple):
    """Rows of a batch, their records, and the counts of each corpus."""

    batch: Any
    planned: list[PlannedRow]
    accounting: dict[str, dict[str, int | float]]


def make_batch(input: MixedInput, step: int, rows: range) -> PlannedBatch:
    """Makes rows of a step."""
    planner = input.planner(rows)
    while planner.step < step:
        planner.next_rows()
    index = planner.next_index.tolist()
    iterator = input.iterator(rows)
    try:
        iterator.set_state(iterator.get_state() | {"step": step, "next_index": index})
        batch = next(iterator)
        return PlannedBatch(batch, planner.next_rows(), iterator.accounting())
    finally:
        iterator.close()


def raise_if_too_many(input: MixedInput, rows: range) -> None:
    if rows.stop > input.batch_size:
        raise ValueError(
            f"--rows={rows.start}:{rows.stop}: input.batch_size={input.batch_size} rows are all"
        )
