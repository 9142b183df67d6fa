"""Keys that identify images, to count their occurrences in all documents of a conversion."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mm1_jax.data.ingest.record_images import RecordImage

# Keys per range when counts are merged: 512 MiB, and twice that while they are sorted.
_KEYS_IN_MEMORY = 2**26
# Larger files of sorted keys are memory-mapped, so the processes of a machine share them.
_MAPPED_BYTES = 2**24


def image_keys(image: RecordImage) -> Iterator[int]:
    """Yields 64 bits of the MD5 of an image's bytes, and of its URL, to recognize it elsewhere.

    Among the keys of a billion images, fewer than one accidental collision is expected.
    """
    sources = [image.data]
    if image.url is not None:
        sources.append(image.url.encode("utf-8", "surrogatepass"))
    for source in sources:
        yield int.from_bytes(hashlib.md5(source, usedforsecurity=False).digest()[:8], "big")


def frequent_keys(
    paths: Sequence[Path], more_than: int, *, keys_in_memory: int = _KEYS_IN_MEMORY
) -> np.ndarray:
    """Returns the keys, sorted, that occur more than `more_than` times in files of sorted keys.

    Keys are hashes, so equal ranges hold about equally many. One range at a time is read from all
    files, so memory holds one range instead of all keys.
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
    """Loads the sorted keys of a file; a large file is memory-mapped."""
    is_large = path.stat().st_size > _MAPPED_BYTES
    return np.load(path, mmap_mode="r" if is_large else None)
