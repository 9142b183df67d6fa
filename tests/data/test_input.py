import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from drawn_corpus import AbsentSource, corpus, input_config, stream

from mm1_jax.data.chat_formats.mm1 import MM1ChatFormat
from mm1_jax.data.corpora.conversations import ConversationDocument
from mm1_jax.data.input_iterator import merge_states

STEPS = 6


def _make(split="train", quarantine_path=None, **fields):
    return input_config(**fields).instantiate(split=split, quarantine_path=quarantine_path)


@pytest.fixture(scope="module")
def shared():
    """An Input, its first batches, and the state before each of them."""
    made = _make()
    iterator = made.iterator()
    states, batches = [], []
    for _ in range(STEPS):
        states.append(json.loads(json.dumps(iterator.get_state())))
        batches.append(next(iterator))
    return made, batches, states


def _take(iterator, steps=STEPS):
    batches = [next(iterator) for _ in range(steps)]
    iterator.close()
    return batches


def _assert_equal(a, b):
    assert len(a) == len(b)
    for step, (x, y) in enumerate(zip(a, b, strict=True)):
        for field in dataclasses.fields(x):
            message = f"step {step}: {field.name}"
            left, right = getattr(x, field.name), getattr(y, field.name)
            assert left.dtype == right.dtype, message
            np.testing.assert_array_equal(left, right, message)


def _join(parts):
    """Concatenates the batches of several iterators into the global batch."""
    return dataclasses.replace(
        parts[0],
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in dataclasses.fields(parts[0])
        },
    )


@pytest.fixture(scope="module")
def grouped():
    """An Input whose rows share buffers that sometimes overflow, its batches and accounting."""
    made = _make(image_group_rows=4, images_per_row=3.5)
    iterator = made.iterator()
    batches = _take(iterator)
    return made, batches, iterator.accounting()


def test_a_batch_has_the_shapes_and_types_that_the_model_expects(shared):
    made, (batch, *_), _ = shared
    assert batch.tokens.shape == (8, 96)
    assert batch.images.shape == (8 * 6, 16, 16, 3)
    assert batch.image_index.shape == (8, 6)
    for name in ("tokens", "targets", "positions", "segment_ids", "corpus_ids", "image_index"):
        assert getattr(batch, name).dtype == np.int32, name
    assert batch.images.dtype == np.uint8
    assert batch.tokens.max() < made.tokenizer.vocab_size
    assert made.corpus_names == ["pairs", "questions", "pages", "texts"]


def test_padding_and_image_slots_are_consistent(shared):
    made, batches, _ = shared
    for batch in batches:
        padding = batch.segment_ids == 0
        assert (batch.corpus_ids[padding] == -1).all()
        assert (batch.corpus_ids[~padding] >= 0).all()
        assert not batch.loss_mask[padding].any()
        assert not batch.tokens[padding].any()
        placeholders = (batch.tokens == made.tokenizer.image_token).sum(axis=1)
        slots = (batch.image_index >= 0).sum(axis=1)
        np.testing.assert_array_equal(placeholders, made.num_image_tokens * slots)
        # The last position of a document is not trained to predict the next document.
        np.testing.assert_array_equal(batch.positions == 0, _starts(batch.segment_ids) | padding)


def _starts(segment_ids):
    before = np.pad(segment_ids, ((0, 0), (1, 0)))[:, :-1]
    return (segment_ids != before) & (segment_ids > 0)


@pytest.mark.parametrize("cuts", [[0, 4, 8], [0, 2, 4, 6, 8], [0, 3, 8]])
def test_hosts_together_make_the_same_batches_as_one(shared, cuts):
    made, batches, _ = shared
    parts = [_take(made.iterator(range(lo, hi))) for lo, hi in zip(cuts, cuts[1:], strict=False)]
    _assert_equal([_join(row_parts) for row_parts in zip(*parts, strict=True)], batches)


@pytest.mark.parametrize("cuts", [[0, 4, 8], [0, 2, 4, 6, 8], [0, 2, 8]])
def test_hosts_that_share_groups_of_rows_make_the_same_batches_as_one(grouped, cuts):
    made, batches, accounting = grouped
    iterators = [made.iterator(range(lo, hi)) for lo, hi in zip(cuts, cuts[1:], strict=False)]
    parts = [_take(iterator) for iterator in iterators]
    _assert_equal([_join(row_parts) for row_parts in zip(*parts, strict=True)], batches)
    # Each host counts its own rows.
    for name, total in accounting.items():
        for key, count in total.items():
            counts = sum(iterator.accounting()[name][key] for iterator in iterators)
            assert counts == pytest.approx(count)

    merged = merge_states([iterator.get_state() for iterator in iterators])
    again, whole = made.iterator(range(2, 8)), made.iterator()
    again.set_state(merged)
    whole.set_state(merged)
    (part,), (batch,) = _take(again, 1), _take(whole, 1)
    np.testing.assert_array_equal(part.tokens, batch.tokens[2:])
    np.testing.assert_array_equal(part.images, batch.images[7:])


def test_a_host_with_an_eighth_of_a_group_reads_its_part():
    made = _make(image_group_rows=8, images_per_row=4)
    parts = [_take(made.iterator(range(b, b + 1)), 2) for b in range(8)]
    batches = [_join(row_parts) for row_parts in zip(*parts, strict=True)]
    _assert_equal(batches, _take(made.iterator(), 2))
    with pytest.raises(ValueError, match="1 rows have no whole number of slots"):
        _make(image_group_rows=8, images_per_row=3.5).iterator(range(1, 2))


def test_groups_make_the_same_rows_except_documents_that_overflow(shared, grouped):
    made, batches, _ = shared
    _, others, accounting = grouped
    lost = np.zeros(4, int)
    for batch, other in zip(batches, others, strict=True):
        assert other.images.shape == (2 * 14, 16, 16, 3)
        for name in ("tokens", "targets", "positions", "segment_ids", "corpus_ids"):
            np.testing.assert_array_equal(getattr(other, name), getattr(batch, name), name)
        shown = other.image_index >= 0
        np.testing.assert_array_equal(
            other.images[other.image_index[shown]], batch.images[batch.image_index[shown]]
        )
        unused = np.setdiff1d(np.arange(28), other.image_index)
        assert not other.images[unused].any()
        scored = batch.loss_mask & ~other.loss_mask
        assert not (other.loss_mask & ~batch.loss_mask).any()
        for b, segment in {(b, batch.segment_ids[b, t]) for b, t in np.argwhere(scored)}:
            document = batch.segment_ids[b] == segment
            assert not other.loss_mask[b, document].any()
            lost[batch.corpus_ids[b, document][0]] += 1
            slots = np.cumsum(batch.tokens[b] == made.tokenizer.image_token) - 1
            slots = slots[document & (batch.tokens[b] == made.tokenizer.image_token)]
            assert (other.image_index[b, slots // made.num_image_tokens] == -1).all()
    assert lost.any()
    assert [counts["overflowed"] for counts in accounting.values()] == lost.tolist()
    assert all(counts["bad_documents"] == 0 for counts in accounting.values())


def test_corrupt_pictures_of_a_group_change_no_other_bit(grouped):
    _, batches, _ = grouped
    config = _with_bad_images([3, 5], image_group_rows=4, images_per_row=3.5)
    for clean, batch in zip(batches, _take(config.instantiate().iterator()), strict=True):
        kept = batch.image_index >= 0
        np.testing.assert_array_equal(batch.image_index[kept], clean.image_index[kept])
        index = batch.image_index[kept]
        np.testing.assert_array_equal(batch.images[index], clean.images[index])


def test_a_prefetching_thread_makes_the_same_batches(shared):
    _, batches, states = shared
    iterator = _make(prefetch=2).iterator()
    _assert_equal([next(iterator) for _ in range(4)], batches[:4])
    iterator.set_state(states[1])
    _assert_equal(_take(iterator, STEPS - 1), batches[1:])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_worker_processes_make_the_same_batches(shared, num_workers):
    _, batches, states = shared
    iterator = _make(num_workers=num_workers).iterator()
    # Worker 0 always begins; in the run from the start, another worker may load this odd step.
    iterator.set_state(states[1])
    _assert_equal(_take(iterator, STEPS - 1), batches[1:])


def test_worker_processes_share_buffers_in_the_same_way(grouped):
    made, batches, _ = grouped
    config = made.config.clone()
    config.num_workers = 2
    _assert_equal(_take(config.instantiate().iterator()), batches)


def test_the_state_is_that_of_the_last_batch_returned_not_of_prefetched_ones(shared):
    _, _, states = shared
    with_prefetch = _make(prefetch=3).iterator()
    for step in range(STEPS):
        assert with_prefetch.get_state() == states[step]
        next(with_prefetch)
    with_prefetch.close()


@pytest.mark.parametrize("step", range(STEPS))
def test_a_new_input_resumes_from_a_saved_state(shared, step):
    _, batches, states = shared
    iterator = _make().iterator()
    iterator.set_state(states[step])
    assert iterator.step == step
    assert iterator.get_state() == states[step]
    _assert_equal(_take(iterator, STEPS - step), batches[step:])


def test_the_state_is_small_and_json(shared):
    *_, states = shared
    assert len(json.dumps(states[-1])) < 2000
    big = _make(batch_size=128).iterator().get_state()
    assert len(json.dumps(big)) < 6000


def test_merged_states_restore_on_other_hosts(shared):
    made, batches, states = shared
    old = [made.iterator(range(lo, lo + 2)) for lo in range(0, 8, 2)]
    for iterator in old:
        _take(iterator, 3)
    merged = json.loads(json.dumps(merge_states([iterator.get_state() for iterator in old])))
    assert merged["next_index"] == states[3]["next_index"]

    new = [made.iterator(range(0, 5)), made.iterator(range(5, 8))]
    for iterator in new:
        iterator.set_state(merged)
    parts = [_take(iterator, STEPS - 3) for iterator in new]
    _assert_equal([_join(row_parts) for row_parts in zip(*parts, strict=True)], batches[3:])

    again = merge_states([iterator.get_state() for iterator in new])
    whole = made.iterator()
    _take(whole)
    assert again["next_index"] == whole.get_state()["next_index"]
    assert again["consumed_before"] == whole.get_state()["consumed"]


def test_hosts_that_share_rows_are_counted_once(shared):
    made, *_ = shared
    iterators = [made.iterator(range(lo, lo + 4)) for lo in (0, 0, 4, 4)]
    for iterator in iterators:
        _take(iterator, 2)
    merged = merge_states([iterator.get_state() for iterator in iterators])
    whole = made.iterator()
    _take(whole, 2)
    assert merged["consumed_before"] == whole.get_state()["consumed"]


def test_unrelated_states_are_not_merged(shared):
    made, *_ = shared
    a, b, c = made.iterator(range(0, 4)), made.iterator(range(4, 8)), made.iterator(range(2, 8))
    with pytest.raises(ValueError, match=r"rows \(0, 4\) and \(2, 8\) overlap"):
        merge_states([a.get_state(), c.get_state()])
    next(b)
    with pytest.raises(ValueError, match="must agree on 'step', but have 1 and 0"):
        merge_states([a.get_state(), b.get_state()])


def test_a_part_of_a_state_does_not_restore_the_whole(shared):
    made, *_ = shared
    with pytest.raises(ValueError, match="missing packing shards"):
        made.iterator().set_state(made.iterator(range(0, 4)).get_state())


def test_a_state_of_another_pipeline_is_rejected_with_the_differences(shared):
    *_, states = shared
    config = input_config(seed=1)
    config.packing.num_bins = 8
    config.streams[0].corpora[1].corpus.source.num_records = 9
    config.streams[2].weight = 3
    with pytest.raises(ValueError, match="with different batches") as error:
        config.instantiate().iterator().set_state(states[0])
    lines = str(error.value).splitlines()
    for line in (
        "  packing.num_bins: 16 in the state, 8 here",
        "  captions.questions.records: 7 in the state, 9 here",
        "  seed: 0 in the state, 1 here",
        "  text.weight: 2 in the state, 3 here",
    ):
        assert line in lines
    # These 4, the lengths and the source of `questions`, and a sentence before and after.
    assert len(lines) == 8


def test_seeds_and_splits_give_other_batches(shared):
    _, (batch, *_), _ = shared
    assert not np.array_equal(next(_make(seed=1).iterator()).tokens, batch.tokens)
    assert not np.array_equal(next(_make(split="test").iterator()).tokens, batch.tokens)


def test_every_record_occurs_once_per_epoch():
    made = _make()
    planner = made.packing.planner(range(8))
    planned = Counter(
        (record.corpus, record.epoch, record.index)
        for _ in range(200)
        for row in planner.next_rows()
        for record in row.records
    )
    assert max(planned.values()) == 1
    for i, source in enumerate(made.corpora):
        assert all(planned[i, 0, index] for index in range(len(source)))


def test_streams_and_corpora_of_weight_0_are_never_built(shared):
    _, batches, _ = shared
    config = input_config()
    absent = corpus("absent").set(source=AbsentSource.default_config())
    entry = stream("captions", 1, absent, weights=[0]).corpora[0]
    config.streams = [stream("off", 0, absent), *config.streams]
    config.streams[1].corpora = [*config.streams[1].corpora, entry]
    _assert_equal(_take(config.instantiate().iterator()), batches)


def test_accounting_counts_the_contents_of_the_batches(shared):
    made, *_ = shared
    iterator = made.iterator()
    documents, tokens, images = np.zeros((3, 4), int)
    for _ in range(4):
        batch = next(iterator)
        first = _starts(batch.segment_ids)
        for i in range(4):
            documents[i] += np.sum(first & (batch.corpus_ids == i))
            tokens[i] += np.sum(batch.corpus_ids == i)
            is_image = (batch.tokens == made.tokenizer.image_token) & (batch.corpus_ids == i)
            images[i] += np.sum(is_image) // made.num_image_tokens
    for i, (name, counts) in enumerate(iterator.accounting().items()):
        assert name == made.corpus_names[i]
        assert counts == {
            "documents": documents[i],
            "tokens": tokens[i],
            "images": images[i],
            "bad_documents": 0,
            "overflowed": 0,
            "epochs": documents[i] / len(made.corpora[i]),
        }


def test_accounting_continues_after_a_restart(shared):
    made, *_ = shared
    whole, stopped = made.iterator(), made.iterator()
    _take(whole, 5)
    _take(stopped, 2)
    resumed = made.iterator()
    resumed.set_state(stopped.get_state())
    _take(resumed, 3)
    assert resumed.accounting() == whole.accounting()


def test_describe_lists_the_contents_of_each_stream(shared):
    made, *_ = shared
    text = made.describe()
    assert "train: 8 rows of 96 positions and 6 images per step" in text
    assert "captions: 45.0% of the rows" in text
    assert "questions: 50.0% of the examples, 7 documents" in text
    assert "images: 6 slots for 1 rows, " in text and "1 rows never need more than 6 (6 per" in text
    text = _make(image_group_rows=4, images_per_row=4).describe()
    assert "images: 16 slots for 4 rows, " in text and "4 rows never need more than 24 (6" in text


def _with_bad_images(indices, **fields):
    config = input_config(max_bad_fraction=0.5, **fields)
    config.streams[0].corpora[0].corpus.source.bad_images = indices
    return config


def test_corrupt_pictures_change_no_other_bit_of_any_batch(shared):
    made, batches, _ = shared
    broken = _take(_with_bad_images([3, 5]).instantiate().iterator())
    num_bad = 0
    for clean, batch in zip(batches, broken, strict=True):
        for name in ("tokens", "targets", "positions", "segment_ids", "corpus_ids"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(clean, name))
        lost = (clean.image_index >= 0) & (batch.image_index < 0)
        kept = ~lost
        np.testing.assert_array_equal(batch.image_index[kept], clean.image_index[kept])
        np.testing.assert_array_equal(batch.images[kept.ravel()], clean.images[kept.ravel()])
        num_bad += lost.sum()
    assert num_bad


def test_quarantine_names_each_bad_record_once(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    made = _with_bad_images([3, 5]).instantiate(quarantine_path=path)
    iterator = made.iterator()
    _take(iterator, 12)
    planner = made.packing.planner(range(8))
    met = [
        (record.index, record.epoch)
        for _ in range(12)
        for row in planner.next_rows()
        for record in row.records
        if record.corpus == 0 and record.index in (3, 5)
    ]
    first_met = {index: epoch for index, epoch in reversed(met)}

    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert {entry["record"]: entry["epoch"] for entry in entries} == first_met
    assert len(entries) == 2 < len(met)
    for entry in entries:
        assert entry["corpus"] == "pairs"
        assert entry["reason"].startswith("image 0: not an image")
    assert iterator.accounting()["pairs"]["bad_documents"] == len(met)


@pytest.mark.parametrize("torn", ["", '{"corpus": "pairs", "rec'])
def test_a_resumed_run_has_the_same_quarantine_as_an_uninterrupted_one(tmp_path, torn):
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    config = _with_bad_images([3, 5, 11])
    _take(config.instantiate(quarantine_path=whole).iterator(), 12)

    iterator = config.instantiate(quarantine_path=resumed).iterator()
    _take(iterator, 2)
    state = iterator.get_state()
    _take(iterator, 3)
    with resumed.open("a") as file:
        file.write(torn)
    iterator = config.instantiate(quarantine_path=resumed).iterator()
    iterator.set_state(state)
    _take(iterator, 10)
    assert resumed.read_text() == whole.read_text()
    assert len(whole.read_text().splitlines()) == 3


def test_records_without_a_document_are_counted_and_never_planned(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    config = input_config(max_bad_fraction=0.1)
    config.streams[1].corpora[0].corpus.source.bad_records = [0, 39]
    made = config.instantiate(quarantine_path=path)
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(entry["corpus"], entry["record"]) for entry in entries] == [
        ("pages", 0),
        ("pages", 39),
    ]
    assert entries[0]["reason"] == "drawn as bad"
    assert "38 documents" in made.describe() and "2 unusable" in made.describe()
    _take(made.iterator())
    assert len(path.read_text().splitlines()) == 2


def test_too_many_bad_records_stop_the_run():
    config = input_config()
    config.streams[1].corpora[0].corpus.source.bad_records = [0, 39]
    with pytest.raises(ValueError, match="2 of 40 documents of corpus 'pages' cannot be used"):
        config.instantiate()
    config.max_bad_fraction = 1.0
    config.streams[1].corpora[0].corpus.source.bad_records = list(range(40))
    with pytest.raises(ValueError, match="none of them usable.* The first one: drawn as bad"):
        config.instantiate(split="train")


@pytest.mark.parametrize("fields", [{}, {"prefetch": 2}])
def test_too_many_bad_pictures_stop_the_run(fields):
    config = _with_bad_images(list(range(0, 40, 2)), **fields)
    config.max_bad_fraction = 0.1
    iterator = config.instantiate().iterator()
    with pytest.raises(ValueError, match="of corpus 'pairs' cannot be used.*max_bad_fraction=0.1"):
        _take(iterator, 40)
    iterator.close()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"max_images": 25},
            "input.max_images=25 images of 4 positions take 100, .* input.max_sequence_length=96",
        ),
        ({"num_image_tokens": None}, "input.num_image_tokens is None; the experiment sets it"),
        ({"image_size": None}, "input.image_size is None; the experiment sets it"),
        ({"batch_size": 0}, "Input: batch_size=0: expected at least 1"),
        ({"num_workers": -1}, "Input: num_workers=-1: expected at least 0"),
        ({"streams": []}, "input.streams has no stream with a weight above 0"),
        ({"streams": [stream("a", 0, corpus("a"))]}, "no stream with a weight above 0"),
        ({"streams": [stream("a", 1, corpus("x"), weights=[0])]}, "'a' has weight 1 but no corpus"),
        ({"streams": [stream("a", -1, corpus("x"))]}, "Stream: weight=-1: expected at least 0"),
        ({"streams": [stream("a", 1, corpus("x")), stream("b", 1, corpus("x"))]}, r"\['x'\] occur"),
        ({"streams": [stream("a", 1, corpus("x", num_records=0))]}, "'x' has no records in split"),
    ],
)
def test_an_invalid_config_is_rejected_when_the_input_is_built(fields, message):
    with pytest.raises(ValueError, match=message):
        _make(**fields)


def test_a_chat_format_that_no_corpus_reads_is_a_warning(caplog):
    cfg = input_config(chat_format=MM1ChatFormat.default_config())
    cfg.instantiate(split="test")
    assert not caplog.text
    cfg.instantiate()
    assert "input.chat_format=MM1ChatFormat has no effect on training" in caplog.text
    caplog.clear()
    document = ConversationDocument.default_config().set(chat_format=cfg.chat_format)
    cfg.streams[0].corpora[0].corpus.to_document = document
    with pytest.raises(ValueError):
        cfg.instantiate()
    assert not caplog.text


def test_inconsistent_sizes_and_shards_are_rejected():
    config = input_config()
    config.image_transform.image_size = 24
    with pytest.raises(ValueError, match="image_transform.image_size=24 disagrees"):
        config.instantiate()
    config = input_config()
    config.packing.num_shards = 3
    with pytest.raises(ValueError, match="packing.num_shards=3 must divide input.batch_size=8"):
        config.instantiate()


def test_a_program_that_forgets_to_close_its_iterator_ends_cleanly():
    code = (
        "from drawn_corpus import input_config\n"
        "iterator = input_config(prefetch=2).instantiate().iterator()\n"
        "next(iterator)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path}\n{code}"],
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (0, "")


def _resident_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_over_ten_thousand_batches():
    iterator = _make().iterator()
    resident = []
    for step in range(10_000):
        next(iterator)
        if step + 1 in (1_000, 10_000):
            resident.append(_resident_bytes())
    assert resident[1] - resident[0] < 10e6, resident
