import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from drawn_corpus import corpus, pair_config, stream, to_pair

from mm1_jax.batch import ImageTextBatch
from mm1_jax.data.corpora import clutter
from mm1_jax.data.corpora.captions import CaptionChoice
from mm1_jax.data.input_iterator import merge_states
from mm1_jax.data.mixture import Stage
from mm1_jax.data.pairs import text_tokens
from mm1_jax.data.random_view import RandomView
from mm1_jax.data.record_files import BadRecord

STEPS = 5
FIELDS = [field.name for field in dataclasses.fields(ImageTextBatch)]


def take(iterator, steps=STEPS):
    batches = [next(iterator) for _ in range(steps)]
    iterator.close()
    return batches


def assert_equal(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        for name in FIELDS:
            left, right = getattr(x, name), getattr(y, name)
            assert left.dtype == right.dtype, name
            np.testing.assert_array_equal(left, right, name)


@pytest.fixture(scope="module")
def whole():
    """An input with records that cannot be used, and its first batches."""
    made = with_bad_records().instantiate()
    return made, take(made.iterator())


def with_bad_records(**fields):
    config = pair_config(max_bad_fraction=0.5, **fields)
    source = config.streams[0].corpora[0].corpus.source
    source.bad_images, source.bad_records = [3, 5], [8]
    return config


def test_a_row_is_a_picture_and_its_caption_between_bos_and_eos(whole):
    made, batches = whole
    tokenizer = made.tokenizer
    num_cut = 0
    for step, batch in enumerate(batches):
        assert batch.images.shape == (8, 16, 16, 3) and batch.images.dtype == np.uint8
        assert batch.tokens.shape == (8, 16) and batch.tokens.dtype == np.int32
        assert batch.row_seeds.dtype == np.uint32
        for b in np.flatnonzero(batch.corpus_ids >= 0).tolist():
            (record,) = made.plan.row(step, b).records
            assert record.corpus == batch.corpus_ids[b]
            document = made.corpora[record.corpus].document(record.index)
            text = tokenizer.encode(document.segments[1].text)
            expected = [tokenizer.bos, *text[:14], tokenizer.eos]
            assert batch.tokens[b, : batch.lengths[b]].tolist() == expected
            assert not batch.tokens[b, batch.lengths[b] :].any()
            num_cut += len(text) > 14
    assert num_cut


@pytest.mark.parametrize("cuts", [[0, 4, 8], [0, 2, 4, 6, 8], [0, 3, 8]])
def test_hosts_together_make_the_same_batches_as_one(whole, cuts):
    made, batches = whole
    parts = [take(made.iterator(range(lo, hi))) for lo, hi in zip(cuts, cuts[1:], strict=False)]
    joined = [
        ImageTextBatch(
            **{name: np.concatenate([getattr(part, name) for part in of_step]) for name in FIELDS}
        )
        for of_step in zip(*parts, strict=True)
    ]
    assert_equal(joined, batches)


def test_a_thread_makes_the_same_batches_and_counts_and_resumes(whole):
    made, batches = whole
    plain, other = made.iterator(), with_bad_records(prefetch=2).instantiate().iterator()
    assert_equal(take(plain, 3), take(other, 3))
    assert other.accounting() == plain.accounting()
    state = json.loads(json.dumps(other.get_state()))
    assert len(json.dumps(state)) < 3000
    again = made.iterator()
    again.set_state(state)
    assert_equal(take(again, 2), batches[3:])


def test_workers_make_the_same_batches(whole):
    made, batches = whole
    state = made.iterator().get_state() | {"step": 2}
    # Worker 0 always begins; in the run from the start, another worker may load this step.
    iterator = with_bad_records(num_workers=2).instantiate().iterator()
    iterator.set_state(state)
    assert_equal(take(iterator, 3), batches[2:])


def test_merged_states_restore_on_other_hosts(whole):
    made, batches = whole
    old = [made.iterator(range(lo, lo + 2)) for lo in range(0, 8, 2)]
    for iterator in old:
        take(iterator, 3)
    merged = json.loads(json.dumps(merge_states([iterator.get_state() for iterator in old])))
    again = with_bad_records().instantiate().iterator()
    again.set_state(merged)
    assert_equal(take(again, 2), batches[3:])
    uninterrupted = made.iterator()
    take(uninterrupted)
    assert again.accounting() == uninterrupted.accounting()


def test_bad_records_leave_their_rows_empty_and_change_no_other(whole, tmp_path):
    made, batches = whole
    path = tmp_path / "quarantine.jsonl"
    iterator = with_bad_records().instantiate(quarantine_path=path).iterator()
    take(iterator, 12)
    clean = pair_config().instantiate()
    for step, (batch, other) in enumerate(zip(batches, take(clean.iterator()), strict=True)):
        bad = [
            record.corpus == 0 and record.index in (3, 5, 8)
            for b in range(8)
            for record in made.plan.row(step, b).records
        ]
        np.testing.assert_array_equal(batch.corpus_ids < 0, bad)
        assert not batch.images[bad].any() and not batch.tokens[bad].any()
        assert not batch.lengths[bad].any()
        kept = np.logical_not(bad)
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(batch, name)[kept], getattr(other, name)[kept])
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(entry["record"] for entry in entries) == [3, 5, 8]
    assert {entry["corpus"] for entry in entries} == {"alt_texts"}
    counts = iterator.accounting()["alt_texts"]
    met = Counter(
        record.index
        for step in range(12)
        for b in range(8)
        for record in made.plan.row(step, b).records
        if record.corpus == 0
    )
    assert counts["documents"] == met.total()
    assert counts["bad_documents"] == met[3] + met[5] + met[8]
    assert counts["images"] == counts["documents"] - counts["bad_documents"]


def test_every_record_occurs_once_per_epoch_and_streams_follow_their_weights():
    plan = pair_config().instantiate().plan
    records = [plan.row(step, b) for step in range(300) for b in range(8)]
    drawn = Counter(
        (row.records[0].corpus, row.records[0].epoch, row.records[0].index) for row in records
    )
    assert max(drawn.values()) == 1
    assert all(drawn[0, 0, i] for i in range(40)) and all(drawn[1, 0, i] for i in range(7))
    of_corpus = Counter(row.records[0].corpus for row in records)
    assert of_corpus[0] == pytest.approx(1200, abs=8) and of_corpus[1] == pytest.approx(400, abs=8)


def test_stages_change_the_shares_of_streams():
    config = pair_config(stages=[Stage().set(from_step=2, weights={"scenes": 0})])
    batches = take(config.instantiate().iterator(), 4)
    assert [bool((batch.corpus_ids == 2).any()) for batch in batches] == [True, True, False, False]


def test_seeds_of_rows_differ_between_records_and_epochs(whole):
    made, batches = whole
    loader = made.batch_maker.loader
    record = made.plan.row(0, 0).records[0]
    other = record._replace(epoch=record.epoch + 1)
    assert loader.row_seed(record) == batches[0].row_seeds[0] != loader.row_seed(other)
    seeds = np.concatenate([batch.row_seeds for batch in batches])
    assert len(set(seeds.tolist())) == len(seeds)
    other_seed = next(pair_config(seed=1).instantiate().iterator())
    assert not np.array_equal(other_seed.row_seeds, batches[0].row_seeds)


def test_an_input_without_text_reads_pictures_alone():
    batch = next(pair_config(max_sequence_length=0).instantiate().iterator())
    assert batch.tokens.shape == (8, 0) and not batch.lengths.any()
    np.testing.assert_array_equal(batch.images, next(pair_config().instantiate().iterator()).images)


def test_a_state_of_another_pipeline_is_rejected_with_the_differences(whole):
    made, _ = whole
    config = pair_config(seed=1, max_sequence_length=12)
    config.streams[1].corpora[0].corpus.source.num_records = 9
    with pytest.raises(ValueError, match="with different batches") as error:
        config.instantiate().iterator().set_state(made.iterator().get_state())
    lines = str(error.value).splitlines()
    for line in (
        "  seed: 0 in the state, 1 here",
        "  max_sequence_length: 16 in the state, 12 here",
        "  scenes.scenes.records: 300 in the state, 9 here",
    ):
        assert line in lines


def test_documents_that_are_no_pairs_are_bad_records():
    config = pair_config(streams=[stream("pages", 1, corpus("pages"))], max_bad_fraction=0.1)
    with pytest.raises(ValueError, match="documents of corpus 'pages' cannot be used"):
        take(config.instantiate().iterator(), 40)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_sequence_length": 2}, "input.max_sequence_length=2 has no room for bos, text and"),
        ({"image_size": None}, "input.image_size is None; the experiment sets it"),
        ({"image_size": 0}, "input.image_size=0 must be at least 1"),
        ({"streams": [stream("a", 1, corpus("x", to_pair, num_records=0))]}, "'x' has no records"),
    ],
)
def test_an_invalid_config_is_rejected_when_the_input_is_built(fields, message):
    with pytest.raises(ValueError, match=message):
        pair_config(**fields).instantiate()


def test_describe_tells_the_shares_and_epochs():
    text = pair_config().instantiate(num_steps=100).describe()
    assert "train: 8 pictures of 16 x 16 pixels with up to 16 tokens each" in text
    assert "web: 66.7% of the rows" in text
    assert "synthetic: 25.0% of these, 7 records, 19.05 epochs" in text


def caption_record(captions):
    return {
        "image": np.zeros((4, 4, 3), np.uint8),
        "captions": [{"text": text, "kind": kind} for text, kind in captions],
    }


@pytest.mark.parametrize(
    ("captions", "weights", "expected"),
    [
        ([("a", "alt"), ("s", "synthetic")], {"alt": 0.3, "synthetic": 0.7}, [0.3, 0.7]),
        # A record that lacks a kind uses the others, and captions of one kind share its weight.
        ([("s", "synthetic")], {"alt": 0.3, "synthetic": 0.7}, [1.0]),
        ([("a", "alt"), ("b", "alt"), ("s", "synthetic")], {"alt": 1, "synthetic": 3}, [1, 1, 6]),
        ([("a", "alt"), (" ", "synthetic")], {"alt": 0.1, "synthetic": 0.9}, [1.0]),
        ([("a", "alt"), ("o", "other")], {"alt": 0.5}, [1.0, 0.0]),
        ([("a", "alt"), ("b", "alt"), ("o", "other")], {}, [1, 1, 1]),
    ],
)
def test_captions_are_drawn_with_the_probabilities_of_their_kinds(captions, weights, expected):
    choice = CaptionChoice.default_config().set(weights=weights).instantiate()
    record = caption_record(captions)
    drawn = Counter(
        choice.draw(record, np.random.default_rng((seed, 1))).segments[1].text
        for seed in range(2000)
    )
    shares = np.array(expected) / np.sum(expected)
    for (text, _), share in zip(captions, shares, strict=False):
        assert drawn[text] / 2000 == pytest.approx(share, abs=0.035)
    assert choice(record).segments[1].text == captions[0][0]


def test_a_record_without_captions_of_the_kinds_is_a_bad_record():
    choice = CaptionChoice.default_config().set(weights={"synthetic": 1.0}).instantiate()
    with pytest.raises(BadRecord, match="no caption of the kinds synthetic; it has alt"):
        choice(caption_record([("a", "alt")]))


def test_rows_have_other_captions_and_views_in_every_epoch_on_any_host():
    shapes = clutter.corpus(clutter.Subject.SHAPES, num_records=16)
    weights = {"alt": 0.5, "synthetic": 0.5}
    shapes.to_document = CaptionChoice.default_config().set(weights=weights)
    config = pair_config(
        streams=[stream("shapes", 1, shapes)],
        augmentation=RandomView.default_config().set(flip=0.5),
        image_size=24,
        max_sequence_length=32,
    )
    made = config.instantiate()
    batches = take(made.iterator(), 8)
    kinds, pictures = {}, {}
    for step, batch in enumerate(batches):
        for b in range(8):
            (record,) = made.plan.row(step, b).records
            texts = [each["text"] for each in made.corpora[0].source[record.index]["captions"]]
            tokens = batch.tokens[b, : batch.lengths[b]].tolist()
            encoded = [text_tokens(made.tokenizer, text, 32) for text in texts]
            kinds.setdefault(record.index, []).append(encoded.index(tokens))
            pictures.setdefault(record.index, []).append(batch.images[b].tobytes())
    assert all(len(set(views)) == len(views) == 4 for views in pictures.values())
    assert sum(len(set(drawn)) == 2 for drawn in kinds.values()) >= 10
    parts = [take(made.iterator(rows), 8) for rows in (range(0, 3), range(3, 8))]
    for whole, (first, last) in zip(batches, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(whole.images, np.concatenate([first.images, last.images]))
        np.testing.assert_array_equal(whole.tokens, np.concatenate([first.tokens, last.tokens]))
    # Held-out pictures are shown whole.
    held_out = config.instantiate(split="test")
    (record,) = held_out.plan.row(0, 0).records
    whole = held_out.corpora[0].document(record.index).images[0]
    shown = next(held_out.iterator()).images[0]
    np.testing.assert_array_equal(shown, held_out.image_transform(whole))
