"""Arrays that one process lends to another: no copy, no reuse while any view of them lives."""

import multiprocessing

import jax
import numpy as np
import pytest

from mm1_jax.data.lent_arrays import Borrower, Lender, LentArray

SHAPE = (3, 5, 4)


def filled(lender, number, shape=SHAPE):
    array = lender.empty(shape, np.uint8)
    array[:] = number
    return lender.lend(array)


def test_memory_is_lent_again_only_when_the_array_and_all_views_are_gone():
    lender, borrower = Lender(), Borrower()
    first = borrower.open(filled(lender, 1))
    row, transposed = first[1], first.T[2:][::-1]
    del first
    second = borrower.open(filled(lender, 2))
    assert (row == 1).all() and (second == 2).all()
    del row
    sent = filled(lender, 3)
    assert (transposed == 1).all() and sent.block == 2
    del transposed
    assert filled(lender, 4).block == 0
    assert (second == 2).all() and (borrower.open(sent) == 3).all()


def test_arrays_of_jax_keep_the_memory_that_they_share():
    lender, borrower = Lender(), Borrower()
    placed = jax.device_put(borrower.open(filled(lender, 7, (64, 64))))
    for number in range(4):
        borrower.open(filled(lender, number, (64, 64)))
    np.testing.assert_array_equal(placed, 7)


def test_other_arrays_and_empty_ones_are_sent_as_they_are():
    lender = Lender()
    for array in (np.zeros(3), lender.empty((0, 4), np.uint8)):
        assert lender.lend(array) is array


def lend(queue, acknowledged, num_arrays):
    lender = Lender()
    for number in range(num_arrays):
        queue.put(filled(lender, number, (1000, 1000)))
        acknowledged.get()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_another_process_reads_what_was_written_and_blocks_are_used_again(method):
    context = multiprocessing.get_context(method)
    queue, acknowledged = context.Queue(), context.Queue()
    process = context.Process(target=lend, args=(queue, acknowledged, 20), daemon=True)
    process.start()
    borrower, kept, blocks = Borrower(), {}, set()
    for number in range(20):
        sent = queue.get(timeout=30)
        assert isinstance(sent, LentArray)
        array = borrower.open(sent)
        assert (array == number).all()
        blocks.add(sent.block)
        if number in (2, 9):
            kept[number] = array[::7]
        del array
        acknowledged.put(None)
    process.join()
    # One is in use, or two while the lender has not seen that it is free, besides the kept ones.
    assert len(blocks) <= 4
    for number, array in kept.items():
        assert (array == number).all()
