"""The buffer of pictures of a batch: its slots, the rows that share them, their shards.

Rows differ in how many pictures they have, and text has none. Groups of consecutive rows that share
slots need far fewer than rows that each have their own, and the vision encoder runs over slots. The
data side places pictures, the model finds them, and both ask here.

All of it is arithmetic on the numbers of pictures that a plan has for the rows of a group, so it
depends on neither hosts, workers nor the mesh, and is known before anything is read. Slots are
counted in the buffer of the global batch. It is cut as the rows are: the slots of a group stand
together, so a part of a batch that holds whole groups (of a host, a device, a micro-batch) holds
their pictures.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

# The slot of every picture of every document of a row; -1 where there was no room.
RowSlots = Sequence[Sequence[int]]


class ImageBuffer(NamedTuple):
    """Groups of consecutive rows of a batch, and the slots that each group shares."""

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
        """The buffer that these fields of an input ask for.

        Raises:
            ValueError: They do not go together.
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
        """The buffer of a batch of such a shape, or of a part of it that holds whole groups.

        With a slot for everything, each row has its own, and no picture ever goes to another
        device.
        """
        if num_slots == num_rows * max_images:
            return cls(1, max_images)
        return cls(group_rows, num_slots * group_rows // num_rows)

    def num_slots(self, num_rows: int) -> int:
        """Returns the slots of some rows; raises ValueError where that is no whole number."""
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

    def place(self, rows: Sequence[Sequence[int]], *, first_row: int = 0) -> list[RowSlots]:
        """Assigns slots to all pictures of the rows of whole groups.

        Documents come in order. One whose pictures do not all fit gets no slot, and is counted and
        not scored; later ones with fewer pictures may fit. A picture that will turn out to be bad
        has a slot like all others: nothing that is found out by reading may move a picture, least
        of all one that another host reads.

        Args:
            rows: The number of pictures of each document of each row.
            first_row: Number of the first of the rows in the batch.
        """
        order = self.dealt().tolist()
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

    def dealt(self) -> Int[np.ndarray, "group_slots"]:
        """The slot in its group that the first, the second, ... picture of a group takes.

        Pictures are dealt like cards to as many equal parts of the slots as rows and slots can both
        be cut into. So any devices that share a group evenly get the same share, of all of its
        pictures and of any run of them, such as those that one device's rows show: what two devices
        exchange is then about as much for all pairs, and bounded well. For 6 slots and 4 rows, or
        2:

            [0, 3, 1, 4, 2, 5]
        """
        num_parts = math.gcd(self.group_slots, self.group_rows)
        return np.arange(self.group_slots).reshape(num_parts, -1).T.ravel()

    def shards_per_group(self, num_rows: int, num_shards: int) -> int:
        """Returns how many of the devices of `num_rows` rows share a group; 1 for whole groups.

        Raises:
            ValueError: Devices would have parts of several groups, or parts of a slot.
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
        """The most pictures that one device may want of one other of the `num_sharing` of a group.

        Its rows show a run of the group's pictures of at most `num_shown`, in the order of dealing.
        """
        owner = self.dealt() // (self.group_slots // num_sharing)
        is_of = owner[:, None] == np.arange(num_sharing)
        before = np.concatenate([np.zeros((1, num_sharing), int), np.cumsum(is_of, axis=0)])
        length = min(num_shown, self.group_slots)
        return int(np.max(before[length:] - before[: len(before) - length]))
