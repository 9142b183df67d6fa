"""The image buffer of a batch: its slots, the rows that share them, and its shards.

Rows hold different numbers of pictures, and text holds none. Groups of consecutive rows that share
slots need far fewer slots than rows with slots of their own, and the vision encoder runs over all
slots. The data side assigns slots to pictures and the model looks them up; both use this module.

The assignment is arithmetic on the planned numbers of pictures per row. It does not depend on
hosts, workers or the mesh, and is known before any record is read. Slots are numbered in the buffer
of the global batch, which is sharded as the rows are: the slots of a group are contiguous, so a
host, device or micro-batch that holds whole groups of rows also holds the pictures of these rows.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

# Slots of the pictures of each document of a row; -1 for documents without room.
RowSlots = Sequence[Sequence[int]]


class ImageBuffer(NamedTuple):
    """Rows per group of consecutive rows in a batch, and slots per group."""

    group_rows: int
    group_slots: int

    @classmethod
    def make(
        cls,
        *,
        batch_size: int,
        max_images: int,
        image_group_rows: int = 1,
        images_per_row: float | int | None = None,
    ) -> "ImageBuffer":
        """Returns the buffer for these fields of an input.

        Raises:
            ValueError: The fields contradict each other.
        """
        if image_group_rows < 1 or batch_size % image_group_rows:
            raise ValueError(
                f"input.image_group_rows={image_group_rows} must divide "
                f"input.batch_size={batch_size}."
            )
        if images_per_row is None:
            return cls(1, max_images)
        if not 0 < images_per_row <= max_images:
            raise ValueError(
                f"input.images_per_row={images_per_row} must be above 0 and at most "
                f"input.max_images={max_images}; None saves no slot."
            )
        num_slots = math.ceil(images_per_row * image_group_rows)
        return cls.of_batch(image_group_rows, num_slots, max_images, image_group_rows)

    @classmethod
    def of_batch(
        cls, num_rows: int, num_slots: int, max_images: int, group_rows: int
    ) -> "ImageBuffer":
        """Returns the buffer of a batch of this shape, or of a part of it with whole groups.

        If there is a slot for every image place, each row has its own slots, and no picture is
        sent to another device.
        """
        if num_slots == num_rows * max_images:
            return cls(1, max_images)
        return cls(group_rows, num_slots * group_rows // num_rows)

    def num_slots(self, num_rows: int) -> int:
        """Returns the number of slots of some rows; raises ValueError if it is not whole."""
        slots, rest = divmod(num_rows * self.group_slots, self.group_rows)
        if rest:
            raise ValueError(
                f"{num_rows} rows have no whole number of slots, as {self.group_rows} rows share "
                f"{self.group_slots}; give a host a multiple of input.image_group_rows rows, or "
                "change input.images_per_row"
            )
        return slots

    def slots(self, rows: range) -> range:
        """Returns the slots in the batch's buffer that belong to some of its rows."""
        return range(self.num_slots(rows.start), self.num_slots(rows.stop))

    def whole_groups(self, rows: range) -> range:
        """Returns all rows of the groups that contain these rows."""
        size = self.group_rows
        return range(rows.start // size * size, -(-rows.stop // size) * size)

    def place(self, rows: Sequence[Sequence[int]], *, first_row: int = 0) -> list[RowSlots]:
        """Assigns slots to all pictures of the rows of whole groups.

        Documents get slots in order. A document whose pictures do not all fit gets no slot; it is
        counted and not scored. Later documents with fewer pictures may still fit. A picture that
        cannot be decoded has a slot too: no result of reading may move another picture, which a
        different host may read.

        Args:
            rows: Number of pictures of each document, by row.
            first_row: Index in the batch of the first of these rows.
        """
        order = self.slot_order().tolist()
        placed: list[RowSlots] = []
        for start in range(0, len(rows), self.group_rows):
            offset, taken = self.num_slots(first_row + start), 0
            for row in rows[start : start + self.group_rows]:
                slots = []
                for num_images in row:
                    end = taken + num_images
                    fits = end <= self.group_slots
                    numbers = order[taken:end] if fits else ()
                    slots.append([offset + i for i in numbers] or [-1] * num_images)
                    taken = end if fits else taken
                placed.append(slots)
        return placed

    def slot_order(self) -> Int[np.ndarray, "group_slots"]:
        """Returns the slots of a group in the order in which its pictures take them.

        The slots are divided into gcd(slots, rows) equal parts, and pictures are dealt to the parts
        round-robin. Devices that share a group evenly then hold equal shares of all pictures and of
        any run of consecutive ones, such as the pictures that one device's rows show. The exchange
        between devices is therefore about equal for all pairs, with a tight bound. For 6 slots and
        4 rows, or 2:

            [0, 3, 1, 4, 2, 5]
        """
        num_parts = math.gcd(self.group_slots, self.group_rows)
        return np.arange(self.group_slots).reshape(num_parts, -1).T.ravel()

    def shards_per_group(self, num_rows: int, num_shards: int) -> int:
        """Returns how many devices share a group; 1 if each device holds whole groups.

        Args:
            num_rows: Rows of a step or micro-batch.
            num_shards: Devices that the rows are split over.

        Raises:
            ValueError: A device would hold parts of several groups, or part of a slot.
        """
        group_rows, shard_rows = self.group_rows, num_rows // num_shards
        num_sharing = max(1, group_rows // max(1, shard_rows))
        if (
            num_rows % num_shards
            or num_rows % group_rows
            or max(group_rows, shard_rows) % min(group_rows, shard_rows)
        ):
            raise ValueError(
                f"input.image_group_rows={group_rows}: a step (or micro-batch) of {num_rows} rows "
                f"on {num_shards} devices has {num_rows / num_shards:g} rows a device; a group "
                "must be the rows of a whole number of devices, or a device have a whole number of "
                "groups: take a power of 2"
            )
        if self.group_slots % num_sharing:
            better = -(-self.group_slots // num_sharing) * num_sharing
            raise ValueError(
                f"input.images_per_row: {group_rows} rows share {self.group_slots} slots, which "
                f"{num_sharing} devices cannot share evenly; take {better / group_rows:g}, for "
                f"{better}"
            )
        return num_sharing

    def most_from_one_shard(self, num_shown: int, num_sharing: int) -> int:
        """Bounds the pictures that a device needs from one other device that shares its group.

        Args:
            num_shown: The most pictures that the device's rows show; they are consecutive in the
                order of `slot_order`.
            num_sharing: Devices that share the group.
        """
        owner = self.slot_order() // (self.group_slots // num_sharing)
        is_of = owner[:, None] == np.arange(num_sharing)
        before = np.concatenate([np.zeros((1, num_sharing), int), np.cumsum(is_of, axis=0)])
        length = min(num_shown, self.group_slots)
        return int(np.max(before[length:] - before[: len(before) - length]))
