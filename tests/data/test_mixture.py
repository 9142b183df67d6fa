from collections import Counter
from itertools import islice

import numpy as np
import pytest
from drawn_corpus import corpus, input_config, stream

from mm1_jax.data.mixture import (
    CorpusShare,
    CorpusWeight,
    MixedStream,
    Mixture,
    Pool,
    count,
    hash_seed,
    most_in_a_run,
    pooled_shares,
    pooled_weights,
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


# MM1.5 (arXiv 2409.20566), section 3.2: ratios to the general category, and the shares in percent
# of the mixture that it fine-tunes on. Text-rich sets have no ratio; 3.3 stands for their size.
RATIOS = {"refer_ground": 2.0, "math": 0.5, "code": 0.2, "science": 0.1}
PUBLISHED = {
    "text_rich": 37.2,
    "refer_ground": 22.5,
    "general": 11.3,
    "math": 5.6,
    "code": 2.3,
    "science": 1.1,
    "multi_image": 10.0,
    "text": 10.0,
}


def _entries(*categories, **fields):
    return [CorpusWeight().set(corpus=Pool(), category=each, **fields) for each in categories]


def test_the_rule_of_mm15_gives_its_published_shares():
    pool = Pool().set(shares={"multi_image": 0.1, "text": 0.1}, relative=RATIOS)
    sizes = [3300 if category == "text_rich" else 1000 for category in PUBLISHED]
    shares = pooled_shares(pool, _entries(*PUBLISHED), sizes)
    np.testing.assert_allclose([100 * float(x) for x in shares], list(PUBLISHED.values()), atol=0.1)
    assert sum(shares) == 1


def test_without_categories_every_example_counts_alike():
    shares = pooled_shares(Pool(), _entries(None, None), [300, 100])
    assert [float(x) for x in shares] == [0.75, 0.25]
    entries = [*_entries(None), *_entries(None, repeat=3.0)]
    assert [float(x) for x in pooled_shares(Pool(), entries, [300, 100])] == [0.5, 0.5]


def test_repeats_move_examples_within_a_category_only():
    pool = Pool().set(shares={"text": 0.2})
    entries = [*_entries("a", "a", repeat=None), *_entries("text", repeat=7.0)]
    entries[0].repeat = 0.5
    shares = [float(x) for x in pooled_shares(pool, entries, [100, 150, 10])]
    np.testing.assert_allclose(shares, [0.2, 0.6, 0.2])


def test_weights_allow_for_records_that_are_skipped():
    """Half of the records of the second corpus are unusable, so it is drawn twice as often."""
    shares = pooled_shares(Pool(), _entries(None, None), [100, 50])
    assert pooled_weights(shares, [100, 100], [100, 50]) == [1 << 15, 1 << 15]


def test_the_smallest_share_is_drawn_and_large_ones_are_close():
    sizes = [91_800, 82_800, 665_000, 9_000, 22_000, 1]
    shares = pooled_shares(Pool(), _entries(*[None] * 6), sizes)
    weights = pooled_weights(shares, sizes, sizes)
    assert min(weights) == 1
    found = np.array(weights[:-1]) / sum(weights)
    np.testing.assert_allclose(found, np.array(sizes[:-1]) / sum(sizes), rtol=1e-3)


@pytest.mark.parametrize(
    ("pool", "entry", "message"),
    [
        (None, {"category": "math"}, "which only a pool reads"),
        ({}, {"weight": 2}, "the pool computes the weights"),
        ({"shares": {"text": 0.1}}, {}, "names the categories .'text'., of which it has no corpus"),
        ({"relative": {"math": 0.5}}, {"category": "math"}, ".'general'., of which"),
        (
            {"relative": {"math": 0.5}, "reference": "math"},
            {"category": "math"},
            None,
        ),
        (
            {"relative": {"math": 0.5}, "reference": "math", "shares": {"math": 0.5}},
            {"category": "math"},
            "gives the categories .'math'. a share, and compares",
        ),
        ({"shares": {"math": 1.0}}, {"category": "math"}, "leave nothing for other categories"),
    ],
)
def test_contradictions_between_corpora_and_pool_are_errors(pool, entry, message):
    cfg = stream("pooled", 1, corpus("first"), corpus("second"))
    cfg.pool = None if pool is None else Pool().set(**pool)
    cfg.corpora[0].set(**entry)
    if message is None:
        cfg.instantiate(split="train")
    else:
        with pytest.raises(ValueError, match=message):
            cfg.instantiate(split="train")


def _pooled_input(**fields):
    cfg = input_config(**fields)
    mixed = stream("mixed", 1, corpus("small"), corpus("large"), corpus("text"))
    mixed.pool = Pool().set(shares={"text": 0.5})
    for entry, size in zip(mixed.corpora, (20, 60, 10), strict=True):
        entry.corpus.source.num_records = size
    mixed.corpora[1].corpus.source.bad_records = list(range(0, 60, 3))
    mixed.corpora[2].category = "text"
    mixed.corpora[0].repeat = 2.0
    return cfg.set(streams=[mixed], max_bad_fraction=0.5)


def test_a_batch_of_a_pool_is_the_same_on_any_number_of_hosts_and_epochs_follow_the_pool():
    made = _pooled_input().instantiate(num_steps=12)
    iterators = [made.iterator(), *(made.iterator(range(r, r + 2)) for r in range(0, 8, 2))]
    for _ in range(12):
        whole, *parts = (next(each) for each in iterators)
        joined = np.concatenate([part.tokens for part in parts])
        np.testing.assert_array_equal(whole.tokens, joined)
    epochs = {name: each["epochs"] for name, each in iterators[0].accounting().items()}
    assert epochs["small"] == pytest.approx(2 * epochs["large"], rel=0.1)
    documents = {name: each["documents"] for name, each in iterators[0].accounting().items()}
    assert documents["text"] == pytest.approx(sum(documents.values()) / 2, rel=0.05)
    for each in iterators:
        each.close()
    # The table foretells the epochs.
    expected = dict(zip(made.corpus_names, made.packing.epochs(0, 12), strict=True))
    assert expected == pytest.approx(epochs, rel=0.1)
    lines = made.describe().splitlines()
    (header,) = [line for line in lines if "epochs in 12 steps" in line]
    assert header.split()[:5] == ["set", "category", "examples", "repeat", "share"]
    (large,) = [line for line in lines if line.split()[:1] == ["large"]]
    assert large.split()[1:5] == ["-", "40", "1", "25.00%"]
