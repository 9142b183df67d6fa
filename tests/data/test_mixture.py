from collections import Counter
from itertools import islice

import numpy as np
import pytest

from mm1_jax.data.mixture import (
    CorpusShare,
    MixedStream,
    Mixture,
    count,
    hash_seed,
    most_in_a_run,
    select,
    shuffle_index,
)

WEIGHTS = [(1,), (1, 1), (9, 9, 2), (45, 45, 10), (2, 0, 1), (29, 57, 14), (7, 5, 3, 1)]


def _mixture(*sizes_and_weights, num_shards=4, seed=0):
    shares = tuple(
        CorpusShare(i, f"corpus{i}", weight, size)
        for i, (size, weight) in enumerate(sizes_and_weights)
    )
    return Mixture([MixedStream("stream", 1, shares)], seed=seed, num_shards=num_shards)


def _records(mixture, shard, stream=0):
    number = 0
    while True:
        yield mixture.record(stream, shard, number)
        number += 1


@pytest.mark.parametrize("weights", WEIGHTS)
def test_select_and_count_agree_with_counting_from_the_start(weights):
    seen = Counter()
    for i in range(3 * sum(weights)):
        assert [count(i, k, weights) for k in range(len(weights))] == [
            seen[k] for k in range(len(weights))
        ]
        choice, rank = select(i, weights)
        assert rank == seen[choice]
        seen[choice] += 1
    assert all(seen[k] == 3 * weight for k, weight in enumerate(weights))


def test_select_is_consistent_at_large_indices():
    weights = (9, 9, 2)
    far = 10**15
    for i in range(20):
        choice, rank = select(i, weights)
        assert select(20 * far + i, weights) == (choice, rank + far * weights[choice])


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (9, 9, 2), (45, 45, 10)])
def test_any_range_of_rows_matches_the_weights_to_within_one_row(weights):
    total = sum(weights)
    choices = np.array([select(i, weights)[0] for i in range(3 * total)])
    for k, weight in enumerate(weights):
        before = np.concatenate([[0], np.cumsum(choices == k)])
        for length in range(1, total + 1):
            counts = before[length:] - before[:-length]
            assert np.abs(counts - length * weight / total).max() <= 1


@pytest.mark.parametrize("weights", [(0, 0), (1, -1)])
def test_all_zero_weights_are_rejected(weights):
    with pytest.raises(ValueError, match="non-negative integers, not all zero"):
        select(0, weights)


def test_weights_with_too_long_a_period_are_rejected():
    with pytest.raises(ValueError, match="round them to smaller integers"):
        select(0, (1234567, 7654321))


@pytest.mark.parametrize("size", [1, 2, 100, 4096, 4097])
def test_a_shuffle_is_a_bijection_determined_by_its_seed(size):
    shuffles = {
        seed: [shuffle_index(position, size, seed) for position in range(size)]
        for seed in (0, 1, 2**32 - 1)
    }
    for shuffle in shuffles.values():
        assert sorted(shuffle) == list(range(size))
    if size >= 100:
        assert len({tuple(shuffle) for shuffle in shuffles.values()}) == 3
        assert shuffles[0] != sorted(shuffles[0])


def test_seeds_and_shuffles_are_the_same_in_every_release():
    # These numbers determine the data order of every run, so they must never change.
    assert hash_seed(0, "digits") == 3262833008
    assert [shuffle_index(i, 8, 1) for i in range(8)] == [1, 5, 7, 3, 6, 0, 4, 2]
    assert [shuffle_index(i, 100_000, 1) for i in range(4)] == [60346, 9747, 36474, 69474]


@pytest.mark.parametrize("num_shards", [1, 4, 8, 64])
@pytest.mark.parametrize("size", [1, 7, 24, 30])
def test_shards_together_draw_every_record_once_per_epoch(num_shards, size):
    mixture = _mixture((size, 1), num_shards=num_shards)
    epochs = 3
    drawn = Counter()
    for shard in range(num_shards):
        for _, epoch, index in islice(_records(mixture, shard), size * epochs):
            drawn[epoch, index] += 1
    for epoch in range(epochs):
        assert [drawn[epoch, index] for index in range(size)] == [1] * size


def test_every_corpus_of_a_stream_yields_each_record_once_per_epoch():
    mixture = _mixture((20, 3), (9, 1))
    drawn = Counter()
    for shard in range(4):
        drawn.update(islice(_records(mixture, shard), 200))
    assert all(drawn[0, epoch, index] == 1 for epoch in range(2) for index in range(20))
    assert all(drawn[1, epoch, index] == 1 for epoch in range(2) for index in range(9))
    assert max(drawn.values()) == 1


@pytest.mark.parametrize("num_shards", [2, 4, 8])
def test_each_shard_draws_from_all_corpora_by_their_weights(num_shards):
    mixture = _mixture((100, 1), (100, 1), num_shards=num_shards)
    for shard in range(num_shards):
        drawn = Counter(corpus for corpus, _, _ in islice(_records(mixture, shard), 50))
        assert drawn == {0: 25, 1: 25}


def test_shards_do_not_draw_the_same_corpus_in_the_same_turn():
    mixture = _mixture((100, 1), (100, 1))
    assert {mixture.record(0, shard, 0)[0] for shard in range(4)} == {0, 1}


def test_every_epoch_and_seed_has_a_different_shuffle():
    orders = set()
    for seed in range(3):
        records = islice(_records(_mixture((50, 1), num_shards=1, seed=seed), 0), 150)
        epochs = [[], [], []]
        for _, epoch, index in records:
            epochs[epoch].append(index)
        orders |= {tuple(order) for order in epochs}
    assert len(orders) == 9


@pytest.mark.parametrize("length", [1, 2, 7, 8, 64])
def test_most_in_a_run_is_the_maximum_over_all_ranges(length):
    weights, amounts = (9, 9, 2), (16, 12, 0)
    each = [amounts[select(i, weights)[0]] for i in range(200)]
    worst = max(sum(each[i : i + length]) for i in range(200 - length))
    assert most_in_a_run(weights, amounts, length) == worst
    assert most_in_a_run((18, 18, 4), amounts, length) == worst
