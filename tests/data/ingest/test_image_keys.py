import itertools
import random
from collections import Counter

import numpy as np
import pytest

from mm1_jax.data.ingest.image_keys import frequent_keys


@pytest.mark.parametrize("keys_in_memory", [1, 10, 1000])
def test_frequent_keys_equal_those_counted_in_memory(tmp_path, keys_in_memory):
    rng = random.Random(keys_in_memory)
    pool = [0, 2**64 - 1, 2**63, *(rng.getrandbits(64) for _ in range(20))]
    files = [[rng.choice(pool) for _ in range(size)] for size in (0, 1, 40, 60)]
    paths = [tmp_path / f"{i}.npy" for i in range(len(files))]
    for path, keys in zip(paths, files, strict=True):
        np.save(path, np.sort(np.array(keys, np.uint64)))
    counts = Counter(itertools.chain(*files))
    expected = sorted(key for key, count in counts.items() if count > 4)
    assert 2 < len(expected) < len(counts)
    assert frequent_keys(paths, 4, keys_in_memory=keys_in_memory).tolist() == expected
