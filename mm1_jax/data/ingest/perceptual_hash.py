"""Perceptual hashes of images (pHash), and the search for the nearest one."""

import itertools

import numpy as np
import PIL.Image

from mm1_jax.batch import Image
from mm1_jax.data.images import BadImage, decode

# Rows 1 to 8 of the discrete cosine transform of 32 values. Row 0 is left out: it holds the
# brightness, and the bits of edges that span the image.
_DCT = np.cos(np.pi * np.arange(1, 9)[:, None] * (2 * np.arange(32)[None] + 1) / 64)
# Standard deviation in gray levels of 255. In a flatter image, the frequencies are encoder noise.
_FLAT = 1.0


def perceptual_hash(data: bytes, *, max_pixels: int) -> int | None:
    """Returns 64 bits that tell which low frequencies of an image exceed their median (pHash).

    Returns None for images that cannot be decoded, and for images of one color, which would all
    look alike.
    """
    try:
        pixels = decode(Image(data), max_pixels=max_pixels)
    except BadImage:
        return None
    # Pillow's resize averages over all pixels, so the size of the image hardly matters.
    picture = PIL.Image.fromarray(pixels).convert("L")
    grey = np.asarray(picture.resize((32, 32), PIL.Image.Resampling.BICUBIC), np.float64)
    if grey.std() < _FLAT:
        return None
    frequencies = _DCT @ grey @ _DCT.T
    bits = np.packbits(frequencies > np.median(frequencies))
    return int.from_bytes(bits.tobytes(), "big")


class HammingIndex:
    """Finds the nearest of many 64-bit hashes that differs from a query in few bits.

    The bits are divided into `max_distance` + 1 bands. Hashes that differ in at most `max_distance`
    bits agree in at least one whole band, so only those that share a band with the query are
    compared: at distance 4, about 100 of 100,000 hashes.
    """

    def __init__(self, hashes: np.ndarray, max_distance: int):
        self._hashes = hashes
        self._max_distance = max_distance
        edges = [64 * band // (max_distance + 1) for band in range(max_distance + 2)]
        self._bands = []
        for low, high in itertools.pairwise(edges):
            shift, mask = np.uint64(low), np.uint64(2 ** (high - low) - 1)
            values = hashes >> shift & mask
            order = np.argsort(values, kind="stable")
            self._bands.append((shift, mask, values[order], order))

    def nearest(self, query: int) -> tuple[int, int] | None:
        """Returns the index and distance of the nearest hash, the first of equals, or None."""
        value = np.uint64(query)
        candidates = []
        for shift, mask, values, order in self._bands:
            band = value >> shift & mask
            start = np.searchsorted(values, band, "left")
            stop = np.searchsorted(values, band, "right")
            candidates.append(order[start:stop])
        indices = np.unique(np.concatenate(candidates))
        if not len(indices):
            return None
        distances = np.bitwise_count(self._hashes[indices] ^ value)
        best = int(np.argmin(distances))
        distance = int(distances[best])
        return (int(indices[best]), distance) if distance <= self._max_distance else None
