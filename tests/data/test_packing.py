from collections import Counter

import grain
import numpy as np
import pytest

from mm1_jax.data.lengths import Lengths
from mm1_jax.data.mixture import CorpusShare, MixedStream
from mm1_jax.data.packing import Packing, PlannedRecord, first_fit

MAX_TOKENS, MAX_IMAGES = 64, 5
# Corpus -> records, longest, most images.
SIZES = {0: (90, 12, 1), 1: (7, 20, 2), 2: (50, 40, 5), 3: (33, 64, 0)}


def _lengths(seed=0):
    rng = np.random.default_rng(seed)
    return {
        corpus: np.stack(
            [rng.integers(1, longest + 1, n), rng.integers(0, most + 1, n)], axis=1
        ).astype(np.int32)
        for corpus, (n, longest, most) in SIZES.items()
    }


def _streams(fillers=()):
    share = {i: CorpusShare(i, f"corpus{i}", 1, SIZES[i][0]) for i in SIZES}
    return [
        MixedStream("captions", 9, (share[0], share[1]), tuple(share[i] for i in fillers)),
        MixedStream("interleaved", 9, (share[2],)),
        MixedStream("text", 2, (share[3],)),
    ]


def _packing(
    *,
    batch_size=8,
    num_shards=None,
    num_bins=4,
    max_examples=None,
    lengths=None,
    seed=0,
    fillers=(),
    stages=(),
):
    return (
        Packing.default_config()
        .set(num_shards=num_shards, num_bins=num_bins, max_examples=max_examples)
        .instantiate(
            streams=_streams(fillers),
            lengths=[Lengths(table) for _, table in sorted((lengths or _lengths()).items())],
            batch_size=batch_size,
            max_sequence_length=MAX_TOKENS,
            max_images=MAX_IMAGES,
            seed=seed,
            stages=stages,
        )
    )


def _plan(packing, steps, rows=None):
    planner = packing.planner(range(packing.batch_size) if rows is None else rows)
    return [planner.next_rows() for _ in range(steps)]


def _examples(rng, n):
    tokens, images = rng.integers(0, 30, n), rng.integers(0, 4, n)
    return [PlannedRecord(0, 0, i, int(tokens[i]), int(images[i])) for i in range(n)]


@pytest.mark.parametrize("num_bins", [1, 3, 16])
def test_first_fit_equals_a_search_through_the_bins(num_bins):
    examples = _examples(np.random.default_rng(num_bins), 400)
    bins = [[] for _ in range(num_bins)]
    drawn = first_fit(examples, bins, max_tokens=MAX_TOKENS, max_images=MAX_IMAGES)

    def fits(contents, example):
        tokens = sum(x.num_tokens for x in contents) + example.num_tokens
        return tokens <= MAX_TOKENS and sum(x.num_images for x in contents) <= (
            MAX_IMAGES - example.num_images
        )

    expected = [[] for _ in range(num_bins)]
    for number, example in enumerate(examples):
        if example.num_tokens == 0:
            continue
        open_bins = [contents for contents in expected if fits(contents, example)]
        if not open_bins:
            assert drawn == number
            break
        open_bins[0].append(example)
    assert bins == expected


def test_first_fit_equals_grains():
    usable = [x for x in _examples(np.random.default_rng(0), 300) if x.num_tokens]
    elements = [
        {
            "tokens": np.full(x.num_tokens, x.index, np.int32),
            "images": np.full(x.num_images, x.index, np.int32),
        }
        for x in usable
    ]
    theirs = grain.experimental.FirstFitPackIterDataset(
        grain.MapDataset.source(elements).to_iter_dataset(),
        length_struct={"tokens": MAX_TOKENS, "images": MAX_IMAGES},
        num_packing_bins=4,
        shuffle_bins=False,
    )
    ours, start = [], 0
    while start < 200:
        bins = [[] for _ in range(4)]
        drawn = first_fit(usable[start:], bins, max_tokens=MAX_TOKENS, max_images=MAX_IMAGES)
        start += drawn
        ours += bins
    for contents, row in zip(ours, theirs, strict=False):
        tokens = np.repeat([x.index for x in contents], [x.num_tokens for x in contents])
        np.testing.assert_array_equal(row["tokens"][row["tokens_segment_ids"] > 0], tokens)


def test_rows_keep_both_budgets_and_hold_one_stream():
    for rows in _plan(_packing(), 60):
        for row in rows:
            assert row.records
            assert sum(record.num_tokens for record in row.records) <= MAX_TOKENS
            assert sum(record.num_images for record in row.records) <= MAX_IMAGES
            corpora = {share.corpus for share in _streams()[row.stream].corpora}
            assert {record.corpus for record in row.records} <= corpora


@pytest.mark.parametrize(("batch_size", "num_shards"), [(8, None), (8, 2), (4, 1), (32, 32)])
def test_every_record_is_planned_once_per_epoch(batch_size, num_shards):
    packing = _packing(batch_size=batch_size, num_shards=num_shards)
    planned = Counter(
        (record.corpus, record.epoch, record.index)
        for rows in _plan(packing, 100)
        for row in rows
        for record in row.records
    )
    assert max(planned.values()) == 1
    for corpus, (size, *_) in SIZES.items():
        assert all(planned[corpus, 0, index] for index in range(size))


@pytest.mark.parametrize("num_shards", [1, 2, 4, 8, 16])
def test_every_batch_matches_the_weights_to_within_one_row(num_shards):
    packing = _packing(batch_size=16, num_shards=num_shards)
    totals = Counter()
    for rows in _plan(packing, 40):
        counts = Counter(row.stream for row in rows)
        totals += counts
        for stream, weight in enumerate((9, 9, 2)):
            assert abs(counts[stream] - 16 * weight / 20) <= 1
    assert totals == {0: 288, 1: 288, 2: 64}


def test_no_row_of_the_batch_always_has_the_same_stream():
    plan = _plan(_packing(), 40)
    for b in range(8):
        assert Counter(rows[b].stream for rows in plan).keys() == {0, 1, 2}


@pytest.mark.parametrize("num_shards", [2, 4, 8])
@pytest.mark.parametrize("cuts", [[0, 4, 8], [0, 2, 4, 6, 8], [0, 1, 5, 8], list(range(9))])
def test_rows_do_not_depend_on_the_other_planned_rows(num_shards, cuts):
    packing = _packing(num_shards=num_shards)
    parts = [_plan(packing, 30, range(lo, hi)) for lo, hi in zip(cuts, cuts[1:], strict=False)]
    assert _plan(packing, 30) == [sum(rows, []) for rows in zip(*parts, strict=True)]


def test_a_planner_plans_only_the_shards_of_its_rows():
    planner = _packing(num_shards=4).planner(range(3, 5))
    planner.next_rows()
    assert np.flatnonzero((planner.next_index >= 0).any(axis=1)).tolist() == [1, 2]


def test_a_restored_plan_continues_as_if_uninterrupted():
    packing = _packing(num_shards=4, num_bins=5)
    planner = packing.planner(range(8))
    states, plan = [], []
    for _ in range(40):
        states.append((planner.step, planner.next_index.copy()))
        plan.append(planner.next_rows())
    for step, (saved_step, next_index) in enumerate(states):
        restored = packing.planner(range(8))
        restored.restore(saved_step, next_index)
        assert [restored.next_rows() for _ in range(3)][: 40 - step] == plan[step : step + 3]
        part = packing.planner(range(2, 5))
        part.restore(saved_step, next_index)
        assert part.next_rows() == plan[step][2:5]


def test_restoring_without_the_state_of_a_shard_names_the_shard():
    packing = _packing(num_shards=4)
    planner = packing.planner(range(8))
    partial = packing.planner(range(4))
    with pytest.raises(ValueError, match=r"missing packing shards \[2, 3\].*merge_states"):
        planner.restore(0, partial.next_index)


def test_unusable_records_are_never_planned():
    lengths = _lengths()
    unusable = {(0, index) for index in range(0, 90, 3)}
    for corpus, index in unusable:
        lengths[corpus][index] = 0
    planned = {
        (record.corpus, record.index)
        for rows in _plan(_packing(lengths=lengths), 100)
        for row in rows
        for record in row.records
    }
    assert not planned & unusable
    assert {index for corpus, index in planned if corpus == 0} == set(range(90)) - {
        index for _, index in unusable
    }


def test_seeds_give_different_rows():
    assert _plan(_packing(seed=0), 2) != _plan(_packing(seed=1), 2)


def test_shards_do_not_all_refill_in_the_same_step():
    packing = _packing(batch_size=32, num_bins=8)
    planner = packing.planner(range(32))
    begun = []
    before = planner.next_index[:, 0].copy()
    for _ in range(60):
        planner.next_rows()
        begun.append(int(np.sum(planner.next_index[:, 0] != before)))
        before = planner.next_index[:, 0].copy()
    # A group lasts about 18 steps; in lockstep, all 32 shards would begin one at the same step.
    assert max(begun) < 16


def test_more_bins_fill_the_rows_better():
    def fill(num_bins):
        rows = [
            row
            for rows in _plan(_packing(num_bins=num_bins), 200)
            for row in rows
            if row.stream == 2
        ]
        tokens = sum(record.num_tokens for row in rows for record in row.records)
        return tokens / (len(rows) * MAX_TOKENS)

    assert fill(1) < 0.8
    assert fill(16) > 0.85


def test_planning_draws_fewer_than_twice_the_records_it_emits(monkeypatch):
    packing = _packing(batch_size=8, num_bins=4)
    drawn = []
    draw = packing.mixture.record
    monkeypatch.setattr(
        packing.mixture, "record", lambda *place: drawn.append(place) or draw(*place)
    )
    planner = packing.planner(range(8))
    emitted = sum(len(row.records) for _ in range(40) for row in planner.next_rows())
    # Also drawn: records of unfinished groups, and, twice, the record that ends each group.
    assert emitted <= len(drawn) < 2 * emitted


@pytest.mark.parametrize("num_shards", [3, 16])
def test_shards_that_do_not_divide_the_batch_are_refused(num_shards):
    with pytest.raises(ValueError, match=r"packing.num_shards=\d+ must divide input.batch_size=8"):
        _packing(num_shards=num_shards)


def test_a_corpus_without_a_usable_record_is_refused():
    lengths = _lengths()
    lengths[3][:] = 0
    with pytest.raises(ValueError, match="'corpus3' of stream 'text' has 33 records, none"):
        _packing(lengths=lengths)


def test_lengths_above_a_budget_are_rejected():
    lengths = _lengths()
    lengths[2][0] = (MAX_TOKENS + 1, 0)
    with pytest.raises(ValueError, match="'corpus2' has examples of up to 65 tokens"):
        _packing(lengths=lengths)


@pytest.mark.parametrize("rows", [range(0), range(4, 9), range(0, 8, 2)])
def test_rows_outside_of_the_batch_are_refused(rows):
    with pytest.raises(ValueError, match="must be a run of rows of a batch of 8"):
        _packing().planner(rows)


def _fill_lengths():
    """Captions that use up the images of a row long before its positions, and short texts."""
    lengths = _lengths()
    rng = np.random.default_rng(5)
    lengths[0] = np.stack([rng.integers(3, 9, 90), np.ones(90)], axis=1).astype(np.int32)
    lengths[1] = np.stack([rng.integers(3, 9, 7), np.ones(7)], axis=1).astype(np.int32)
    lengths[3] = np.stack([rng.integers(2, 12, 33), np.zeros(33)], axis=1).astype(np.int32)
    return lengths


def _captions(rows):
    return [row for step in rows for row in step if row.stream == 0]


def test_fillers_use_the_remaining_positions_and_change_no_caption():
    lengths = _fill_lengths()
    plain = _captions(_plan(_packing(lengths=lengths), 200))
    filled = _captions(_plan(_packing(lengths=lengths, fillers=(3,)), 200))
    own = [tuple(r for r in row.records if r.corpus != 3) for row in filled]
    assert own == [row.records for row in plain]

    def fill(rows):
        return np.mean([sum(r.num_tokens for r in row.records) / MAX_TOKENS for row in rows])

    assert fill(plain) < 0.6 and fill(filled) > 0.9
    assert max(sum(r.num_tokens for r in row.records) for row in filled) <= MAX_TOKENS


def test_every_filler_occurs_once_per_epoch():
    packing = _packing(lengths=_fill_lengths(), fillers=(3,), num_shards=2)
    drawn = Counter(
        (record.epoch, record.index)
        for row in _captions(_plan(packing, 200))
        for record in row.records
        if record.corpus == 3
    )
    whole = [epoch for epoch in range(3) if all((epoch, i) in drawn for i in range(SIZES[3][0]))]
    assert whole == [0, 1, 2] and set(drawn.values()) == {1}


def test_a_plan_with_fillers_resumes_from_its_state():
    packing = _packing(lengths=_fill_lengths(), fillers=(3,))
    rows = _plan(packing, 30)
    planner = packing.planner(range(8))
    for _ in range(17):
        planner.next_rows()
    restored = packing.planner(range(8))
    restored.restore(planner.step, planner.next_index.copy())
    assert [restored.next_rows() for _ in range(13)] == rows[17:]


def test_fillers_with_images_are_refused():
    with pytest.raises(ValueError, match="'corpus2' is a filler of stream 'captions', but has im"):
        _packing(fillers=(2,))


STAGES = [(10, {"captions": 1, "interleaved": 1, "text": 0}), (25, {"text": 2})]


def test_every_stage_keeps_its_weights_and_continues_the_records():
    staged, plain = _packing(stages=STAGES), _packing()
    rows = _plan(staged, 60)
    for start, stop, weights in ((0, 10, (9, 9, 2)), (10, 25, (1, 1, 0)), (25, 60, (1, 1, 2))):
        for step in range(start, stop):
            counts = Counter(row.stream for row in rows[step])
            for stream, weight in enumerate(weights):
                assert abs(counts[stream] - 8 * weight / sum(weights)) <= 1, (step, stream)
    # Each stream yields the same rows, only at other steps.
    unstaged = _plan(plain, 400)
    for shard in range(8):
        for stream in range(3):
            given = [step[shard] for step in rows if step[shard].stream == stream]
            others = [step[shard] for step in unstaged if step[shard].stream == stream]
            assert given == others[: len(given)] and len(given) > 3


def test_a_plan_with_stages_resumes_from_its_state_in_any_stage():
    packing = _packing(stages=STAGES)
    rows = _plan(packing, 40)
    for stop in (5, 10, 18, 25, 31):
        planner = packing.planner(range(8))
        for _ in range(stop):
            planner.next_rows()
        restored = packing.planner(range(8))
        restored.restore(planner.step, planner.next_index.copy())
        assert [restored.next_rows() for _ in range(40 - stop)] == rows[stop:]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([(0, {"text": 1})], "from_step=0 must be above 0"),
        ([(5, {}), (5, {})], "from_step=5 must be above 5"),
        ([(5, {"texts": 1})], r"no streams \['texts'\]; expected some of \['captions'"),
        ([(5, {"captions": 0, "interleaved": 0, "text": 0})], "not all 0"),
    ],
)
def test_invalid_stages_are_rejected(stages, message):
    with pytest.raises(ValueError, match=message):
        _packing(stages=stages)


def test_stages_are_part_of_the_fingerprint():
    assert _packing(stages=STAGES).fingerprint()["stages.25"] == {
        "captions": 1, "interleaved": 1, "text": 2,
    }  # fmt: skip
    assert _packing().fingerprint().keys() < _packing(stages=STAGES).fingerprint().keys()


def test_rows_of_one_example_hold_all_records_in_the_order_of_their_draws():
    packing = _packing(max_examples=1, num_bins=1)
    rows = [row for step in _plan(packing, 12) for row in step]
    assert all(len(row.records) == 1 for row in rows)
    stream = packing.mixture.record
    own = [row.records[0] for row in rows if row.stream == 1]
    assert len({record.index for record in own}) == min(len(own), SIZES[2][0])
    drawn = {stream(1, shard, number)[2] for shard in range(8) for number in range(12)}
    assert {record.index for record in own} <= drawn
    assert packing.expected_examples(1) == 1


def test_the_fingerprint_names_a_limit_of_examples_only_where_there_is_one():
    assert "packing.max_examples" not in _packing().fingerprint()
    assert _packing(max_examples=2).fingerprint()["packing.max_examples"] == 2
    rows = [row for step in _plan(_packing(max_examples=2), 6) for row in step]
    assert {len(row.records) for row in rows} <= {1, 2}
