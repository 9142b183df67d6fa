"""Keys of images, by which they are counted over all documents of a conversion."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mm1_jax.data.ingest.record_images import Picture

# Bytes of one range of keys when counts are merged: 512 MiB, twice that while they are sorted.
_KEYS_IN_MEMORY = 2**26
# Sorted keys above this size stay in the file, which the processes of a machine then share.
_MAPPED_BYTES = 2**24


def image_keys(picture: Picture) -> Iterator[int]:
    """Yields 64 bits of the MD5 of the bytes of an image, and of its URL, which tell its uses.

    Among the keys of a billion images, chance makes less than one pair.
    """
    sources = [picture.data]
    if picture.url is not None:
        sources.append(picture.url.encode("utf-8", "surrogatepass"))
    for source in sources:
        yield int.from_bytes(hashlib.md5(source, usedforsecurity=False).digest()[:8], "big")


def frequent_keys(
    paths: Sequence[Path], more_than: int, *, keys_in_memory: int = _KEYS_IN_MEMORY
) -> np.ndarray:
    """The keys, sorted, that occur more than so many times in files of sorted keys.

    The keys are hashes, so equal ranges of them hold about equal numbers. One range at a time is
    read of every file, and memory is that of a range, not of all keys.
    """
    total = sum(len(load_keys(path)) for path in paths)
    num_ranges = max(1, math.ceil(total / keys_in_memory))
    starts = np.array([i * 2**64 // num_ranges for i in range(num_ranges)], np.uint64)
    found = []
    for number in range(num_ranges):
        pieces = []
        for path in paths:
            keys = load_keys(path)
            edges = np.searchsorted(keys, starts[number : number + 2])
            start, stop = edges if len(edges) == 2 else (edges[0], len(keys))
            pieces.append(np.asarray(keys[start:stop]))
        values, counts = np.unique(np.concatenate(pieces), return_counts=True)
        found.append(values[counts > more_than])
    return np.concatenate(found)


def load_keys(path: Path) -> np.ndarray:
    """The sorted keys in a file; those of a large one stay there."""
    is_large = path.stat().st_size > _MAPPED_BYTES
    return np.load(path, mmap_mode="r" if is_large else None)
