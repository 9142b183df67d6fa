import itertools

import numpy as np
import pytest

from mm1_jax.batch import dealt_slots
from mm1_jax.data.image_buffer import ImageBuffer, image_buffer, most_images
from mm1_jax.data.mixture import select
from mm1_jax.data.packing import PlannedRecord, PlannedRow


def _rows(*counts):
    """Rows of documents with so many pictures each."""
    return [
        PlannedRow(0, tuple(PlannedRecord(0, 0, i, 9, n) for i, n in enumerate(row)))
        for row in counts
    ]


def _make(**fields):
    return image_buffer(
        **(dict(group_rows=4, images_per_row=None, max_images=16, batch_size=8) | fields)
    )


@pytest.mark.parametrize(("num_slots", "num_rows"), [(6, 4), (12, 4), (7, 4), (776, 64), (5, 1)])
def test_every_slot_is_dealt_once_and_any_devices_get_equal_shares(num_slots, num_rows):
    slots = dealt_slots(num_slots, num_rows)
    assert sorted(slots) == list(range(num_slots))
    for num_shards in range(1, num_rows + 1):
        if num_slots % num_shards or num_rows % num_shards:
            continue
        owners = slots // (num_slots // num_shards)
        for n in (1, num_rows, num_slots // 2 + 1):
            for start in range(num_slots - n + 1):
                shares = np.bincount(owners[start : start + n], minlength=num_shards)
                parts = np.gcd(num_slots, num_rows) // num_shards
                assert max(shares) - min(shares) <= parts


def test_pictures_are_dealt_in_the_order_of_their_rows():
    buffer = ImageBuffer(group_rows=2, group_slots=6)
    rows = _rows([1, 2], [0, 3], [2], [])
    assert buffer.place(rows) == [[[0], [3, 1]], [[], [4, 2, 5]], [[6, 9]], []]
    assert buffer.place(rows[2:], first_row=2) == [[[6, 9]], []]


def test_a_document_that_does_not_fit_leaves_its_room_to_those_after_it():
    rows = _rows([2, 3], [1, 1, 0])
    assert ImageBuffer(2, 4).place(rows) == [[[0, 2], [-1, -1, -1]], [[1], [3], []]]


def test_rows_with_a_slot_for_everything_have_their_own():
    assert _make() == _make(images_per_row=16) == ImageBuffer(1, 16)
    assert _make(images_per_row=11.1) == ImageBuffer(4, 45)
    own = ImageBuffer(1, 3)
    assert own.place(_rows([1, 2], [1])) == [[[0], [1, 2]], [[3]]]


def test_parts_of_the_batch_have_parts_of_the_buffer():
    buffer = ImageBuffer(4, 10)
    assert buffer.slots(range(2, 6)) == range(5, 15)
    assert buffer.whole_groups(range(2, 6)) == range(0, 8)
    assert buffer.whole_groups(range(4, 8)) == range(4, 8)
    with pytest.raises(ValueError, match="1 rows have no whole number of slots, as 4 rows share"):
        buffer.slots(range(1, 2))


@pytest.mark.parametrize("num_rows", [1, 2, 7, 8, 64])
def test_the_most_images_are_those_of_the_worst_run_of_rows(num_rows):
    weights, row_images = (9, 9, 2), (16, 12, 0)
    rows = [row_images[select(i, weights)[0]] for i in range(200)]
    worst = max(sum(rows[i : i + num_rows]) for i in range(200 - num_rows))
    assert most_images(weights, row_images, num_rows) == worst
    assert most_images((18, 18, 4), row_images, num_rows) == worst


def test_that_many_slots_never_overflow():
    row_images = (4, 3, 0)
    buffer = ImageBuffer(5, most_images((2, 2, 1), row_images, 5))
    documents = [[[1] * 4], [[3]], [[0]]]
    for shift in range(5):
        kinds = [select(shift + i, (2, 2, 1))[0] for i in range(5)]
        placed = buffer.place(_rows(*(documents[kind][0] for kind in kinds)))
        assert min(itertools.chain(*itertools.chain(*placed))) == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"group_rows": 3}, "input.image_group_rows=3 must divide input.batch_size=8"),
        ({"group_rows": 0}, "input.image_group_rows=0 must divide"),
        ({"images_per_row": 0}, "input.images_per_row=0 must be above 0 and at most"),
        ({"images_per_row": 16.5}, "input.images_per_row=16.5 .* input.max_images=16"),
    ],
)
def test_a_buffer_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        _make(**fields)
