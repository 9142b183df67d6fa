import io
import itertools
import random

import numpy as np
import PIL.Image
import pytest

from mm1_jax.data.ingest.filters import EvaluationOverlap
from mm1_jax.data.ingest.perceptual_hash import HammingIndex, perceptual_hash

MAX_PIXELS = 64_000_000


def encoded(picture: PIL.Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("max_distance", [0, 1, 4, 9])
def test_the_index_finds_the_same_as_a_comparison_with_all_hashes(max_distance):
    rng = random.Random(max_distance)
    hashes = [rng.getrandbits(64) for _ in range(300)]
    index = HammingIndex(np.array(hashes, np.uint64), max_distance)
    found = 0
    for _ in range(300):
        query = rng.choice(hashes)
        for bit in rng.sample(range(64), rng.randrange(max_distance + 3)):
            query ^= 1 << bit
        best = min(range(300), key=lambda i: (hashes[i] ^ query).bit_count())
        distance = (hashes[best] ^ query).bit_count()
        expected = (best, distance) if distance <= max_distance else None
        assert index.nearest(query) == expected
        found += expected is not None
    assert 0 < found < 300


def test_an_empty_index_finds_nothing():
    assert HammingIndex(np.array([], np.uint64), 4).nearest(0) is None


def test_textbook_figures_are_distinguished_and_their_copies_are_found(test_data):
    paths = sorted((test_data / "openstax" / "images").iterdir())[::6]
    hashes = [perceptual_hash(path.read_bytes(), max_pixels=MAX_PIXELS) for path in paths]
    assert len(paths) > 100 and None not in hashes
    distances = [(a ^ b).bit_count() for a, b in itertools.combinations(hashes, 2)]
    assert min(distances) > EvaluationOverlap.default_config().max_distance
    for path, value in list(zip(paths, hashes, strict=True))[::4]:
        picture = PIL.Image.open(path).convert("RGB")
        half = picture.resize((picture.width // 2, picture.height // 2))
        for data in (encoded(picture, "JPEG", quality=60), encoded(half, "PNG")):
            copy = perceptual_hash(data, max_pixels=MAX_PIXELS)
            assert (copy ^ value).bit_count() <= EvaluationOverlap.default_config().max_distance
