"""Where the pictures of a batch stand in its buffer, decided on plans, before anything is read.

Rows differ in how many pictures they have, and text has none; groups of rows that share a buffer
need far fewer slots than rows that each have their own, and the image tower runs over slots. What
fits is a matter of the planned rows of a group alone, so it does not depend on hosts, workers or
the mesh.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mm1_jax.batch import dealt_slots
from mm1_jax.data.mixture import select
from mm1_jax.data.packing import PlannedRow

# The slot of every picture of every record of a row; -1 where there was no room.
RowSlots = Sequence[Sequence[int]]


class ImageBuffer(NamedTuple):
    """How the rows of a batch share its buffer: consecutive groups of rows, each with its slots."""

    group_rows: int
    group_slots: int

    def num_slots(self, num_rows: int) -> int:
        """Slots of some rows: a whole number, or a ValueError."""
        slots, rest = divmod(num_rows * self.group_slots, self.group_rows)
        if rest:
            raise ValueError(
                f"{num_rows} rows have no whole number of slots, as {self.group_rows} rows share "
                f"{self.group_slots}; give a host a multiple of input.image_group_rows rows, or "
                "change input.images_per_row"
            )
        return slots

    def slots(self, rows: range) -> range:
        """The part of the batch's buffer that belongs to some of its rows."""
        return range(self.num_slots(rows.start), self.num_slots(rows.stop))

    def whole_groups(self, rows: range) -> range:
        """All rows of the groups that these rows are in."""
        size = self.group_rows
        return range(rows.start // size * size, -(-rows.stop // size) * size)

    def place(self, rows: Sequence[PlannedRow], *, first_row: int = 0) -> list[RowSlots]:
        """The slots that pictures take in the batch's buffer, for the rows of whole groups.

        Documents come in order, and one whose pictures do not all fit gets none; later ones with
        fewer may. A picture that will turn out to be bad has a slot like all others: nothing that
        is found out by reading may move a picture, least of all one that another host reads.

        Args:
            first_row: Number of the first of the rows in the batch.
        """
        order = dealt_slots(self.group_slots, self.group_rows).tolist()
        placed: list[RowSlots] = []
        for start in range(0, len(rows), self.group_rows):
            offset, taken = self.num_slots(first_row + start), 0
            for row in rows[start : start + self.group_rows]:
                slots = []
                for record in row.records:
                    end = taken + record.num_images
                    fits = end <= self.group_slots
                    numbers = order[taken:end] if fits else ()
                    slots.append([offset + i for i in numbers] or [-1] * record.num_images)
                    taken = end if fits else taken
                placed.append(slots)
        return placed


def image_buffer(
    *, group_rows: int, images_per_row: float | int | None, max_images: int, batch_size: int
) -> ImageBuffer:
    """The buffer that `input.image_group_rows` and `input.images_per_row` ask for."""
    if group_rows < 1 or batch_size % group_rows:
        raise ValueError(
            f"input.image_group_rows={group_rows} must divide input.batch_size={batch_size}."
        )
    if images_per_row is None:
        return ImageBuffer(1, max_images)
    if not 0 < images_per_row <= max_images:
        raise ValueError(
            f"input.images_per_row={images_per_row} must be above 0 and at most input.max_images="
            f"{max_images}; None saves no slot."
        )
    group_slots = math.ceil(images_per_row * group_rows)
    # With a slot for everything, a row has its own, and no picture ever goes to another device.
    if group_slots == group_rows * max_images:
        return ImageBuffer(1, max_images)
    return ImageBuffer(group_rows, group_slots)


def most_images(weights: tuple[int, ...], row_images: Sequence[int], num_rows: int) -> int:
    """The most pictures that `num_rows` consecutive rows can have, whatever is packed into them.

    So many slots never overflow. The rows of a step are a run of the interleaving of the streams.

    Args:
        weights: Of the streams.
        row_images: The most pictures of a row of each stream.
    """
    period = sum(weights) // math.gcd(*weights)
    rows = [row_images[select(i, weights)[0]] for i in range(period + num_rows)]
    before = np.concatenate([[0], np.cumsum(rows)])
    return int(np.max(before[num_rows:] - before[:-num_rows]))
