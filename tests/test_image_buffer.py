import itertools

import numpy as np
import pytest

from mm1_jax.data.mixture import most_in_a_run, select
from mm1_jax.image_buffer import ImageBuffer


def _make(**fields):
    return ImageBuffer.make(
        **(dict(image_group_rows=4, images_per_row=None, max_images=16, batch_size=8) | fields)
    )


@pytest.mark.parametrize(("num_slots", "num_rows"), [(6, 4), (12, 4), (7, 4), (776, 64), (5, 1)])
def test_every_slot_is_assigned_once_and_devices_get_equal_shares(num_slots, num_rows):
    slots = ImageBuffer(num_rows, num_slots).slot_order()
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


def test_slots_are_assigned_in_row_order():
    buffer = ImageBuffer(group_rows=2, group_slots=6)
    rows = [[1, 2], [0, 3], [2], []]
    assert buffer.place(rows) == [[[0], [3, 1]], [[], [4, 2, 5]], [[6, 9]], []]
    assert buffer.place(rows[2:], first_row=2) == [[[6, 9]], []]


def test_a_document_that_does_not_fit_leaves_its_slots_to_later_ones():
    rows = [[2, 3], [1, 1, 0]]
    assert ImageBuffer(2, 4).place(rows) == [[[0, 2], [-1, -1, -1]], [[1], [3], []]]


def test_rows_with_enough_slots_do_not_share():
    assert _make() == _make(images_per_row=16) == ImageBuffer(1, 16)
    assert _make(images_per_row=11.1) == ImageBuffer(4, 45)
    own = ImageBuffer(1, 3)
    assert own.place([[1, 2], [1]]) == [[[0], [1, 2]], [[3]]]


def test_the_buffer_of_a_batch_is_inferred_from_its_shape():
    for buffer in (_make(), _make(images_per_row=11.1)):
        for num_rows in (4, 8):
            slots = buffer.num_slots(num_rows)
            assert ImageBuffer.of_batch(num_rows, slots, max_images=16, group_rows=4) == buffer


def test_rows_without_images_have_no_slots():
    buffer = _make(max_images=0)
    assert buffer.num_slots(8) == 0 and buffer.place([[0, 0], []]) == [[[], []], []]
    assert buffer.shards_per_group(8, 4) == 1


def test_parts_of_a_batch_have_parts_of_the_buffer():
    buffer = ImageBuffer(4, 10)
    assert buffer.slots(range(2, 6)) == range(5, 15)
    assert buffer.whole_groups(range(2, 6)) == range(0, 8)
    assert buffer.whole_groups(range(4, 8)) == range(4, 8)
    with pytest.raises(ValueError, match="1 rows have no whole number of slots, as 4 rows share"):
        buffer.slots(range(1, 2))


def test_slots_for_the_maximum_number_of_images_never_overflow():
    row_images = (4, 3, 0)
    buffer = ImageBuffer(5, most_in_a_run((2, 2, 1), row_images, 5))
    documents = [[1] * 4, [3], [0]]
    for shift in range(5):
        kinds = [select(shift + i, (2, 2, 1))[0] for i in range(5)]
        placed = buffer.place([documents[kind] for kind in kinds])
        assert min(itertools.chain(*itertools.chain(*placed))) == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_group_rows": 3}, "input.image_group_rows=3 must divide input.batch_size=8"),
        ({"image_group_rows": 0}, "input.image_group_rows=0 must divide"),
        ({"images_per_row": 0}, "input.images_per_row=0 must be above 0 and at most"),
        ({"images_per_row": 16.5}, "input.images_per_row=16.5 .* input.max_images=16"),
    ],
)
def test_an_invalid_buffer_is_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        _make(**fields)


@pytest.mark.parametrize(
    ("num_rows", "buffer", "num_shards", "message"),
    [
        (8, (8, 24), 3, "input.image_group_rows=8: .* of 8 rows on 3 devices has 2.66667 rows"),
        (12, (6, 18), 3, "input.image_group_rows=6: .* has 4 rows a device"),
        (8, (16, 48), 4, "input.image_group_rows=16: .* of 8 rows on 4 devices"),
        (8, (8, 26), 4, r"input.images_per_row: 8 rows share 26 .* take 3.5, for 28"),
    ],
)
def test_groups_that_do_not_fit_the_mesh_are_rejected(num_rows, buffer, num_shards, message):
    with pytest.raises(ValueError, match=message):
        ImageBuffer(*buffer).shards_per_group(num_rows, num_shards)


@pytest.mark.parametrize(("group_rows", "num_sharing"), [(8, 1), (16, 1), (32, 2)])
def test_the_number_of_devices_per_group_follows_from_its_rows(group_rows, num_sharing):
    buffer = ImageBuffer(group_rows, group_rows * 96 // 64)
    assert buffer.shards_per_group(64, 4) == num_sharing
