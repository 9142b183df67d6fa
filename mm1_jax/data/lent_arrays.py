"""Arrays that a worker writes and the process that reads its batches sees, without a copy.

A worker lends an array, and gets its memory back when the reader has dropped it and every view of
it. New memory would cost more than the pixels: a page of shared memory is allocated and zeroed for
every 4 KiB. The memory has no name, so nothing is left behind however the processes end.
"""

import mmap
import os
import weakref
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np

_FREE, _LENT = 0, 1


@dataclass(frozen=True)
class LentArray:
    """An array in a block of a worker's memory, as it is sent to the reader.

    Attributes:
        block: Number of the block, among those of the process `lender`.
        descriptor: Descriptor of the block's file, when it is lent for the first time.
    """

    lender: int
    block: int
    descriptor: Any
    shape: tuple[int, ...]
    dtype: np.dtype


class Lender:
    """Lends arrays; each has a block of memory of its own until the reader drops it."""

    def __init__(self):
        self._blocks: list[mmap.mmap] = []
        # Descriptors of the blocks that no reader has seen.
        self._descriptors: dict[int, int] = {}
        # Block of each array, by its address.
        self._lent: dict[int, int] = {}

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Returns an array without initial values, like `numpy.empty`, that `lend` can send."""
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if not num_bytes or not hasattr(os, "memfd_create"):
            return np.empty(shape, dtype)
        number = self._free_block(num_bytes)
        block = self._blocks[number]
        block[num_bytes] = _LENT
        array = _array(block, shape, np.dtype(dtype))
        self._lent[array.ctypes.data] = number
        return array

    def lend(self, array: np.ndarray) -> LentArray | np.ndarray:
        """Returns what to send in place of an array, which is itself unless `empty` made it."""
        number = self._lent.get(array.ctypes.data)
        if number is None:
            return array
        sent = None
        if number in self._descriptors:
            sent = DupFd(descriptor := self._descriptors.pop(number))
            os.close(descriptor)
        return LentArray(os.getpid(), number, sent, array.shape, array.dtype)

    def _free_block(self, num_bytes: int) -> int:
        """Returns the number of a block with a last byte that says whether it is lent."""
        for number, block in enumerate(self._blocks):
            if len(block) == num_bytes + 1 and block[num_bytes] == _FREE:
                return number
        descriptor = os.memfd_create("mm1_jax_batch")
        os.ftruncate(descriptor, num_bytes + 1)
        self._blocks.append(mmap.mmap(descriptor, num_bytes + 1))
        self._descriptors[len(self._blocks) - 1] = descriptor
        return len(self._blocks) - 1


class Borrower:
    """Opens the arrays of lenders."""

    def __init__(self):
        self._blocks: dict[tuple[int, int], mmap.mmap] = {}

    def open(self, sent: LentArray) -> np.ndarray:
        """Returns the array that a lender has sent; each array is opened once, in order."""
        key = (sent.lender, sent.block)
        if sent.descriptor is not None:
            descriptor = sent.descriptor.detach()
            self._blocks[key] = mmap.mmap(descriptor, 0)
            os.close(descriptor)
        block = self._blocks[key]
        array = _array(block, sent.shape, sent.dtype)
        # Views of the array keep it alive, and so do arrays of JAX that share its memory.
        weakref.finalize(array, _give_back, block).atexit = False
        return array


def _array(block: mmap.mmap, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    # Not `np.frombuffer(...).reshape`: the result would be a view, whose finalizer might run before
    # the end of other views.
    return np.ndarray(shape, dtype, buffer=block)


def _give_back(block: mmap.mmap) -> None:
    block[len(block) - 1] = _FREE
