import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
from drawn_corpus import input_config

from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.snapshot import SNAPSHOT, CorpusExamples, Form, Snapshot, write_snapshot

STEPS = 4


def _config(**fields):
    config = input_config(**fields)
    # Pictures that cannot be decoded.
    config.streams[0].corpora[0].corpus.source.bad_images = [2, 5]
    config.max_bad_fraction = 0.5
    return config


def write(folder, form, config, examples=None):
    made = config.instantiate(split="train")
    planner = made.planner(range(made.batch_size))
    write_snapshot(
        folder,
        form,
        (planner.next_rows() for _ in range(STEPS)),
        examples=examples or CorpusExamples(made.corpora, made.lengths, made.example_builder),
        facts={
            "num_steps": STEPS,
            "batch_size": made.batch_size,
            "fingerprint": made.fingerprint(),
            "corpora": dict(zip(made.corpus_names, made.num_usable, strict=True)),
        },
        progress=lambda: None,
    )
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {form: write(tmp_path_factory.mktemp(form.value), form, _config()) for form in Form}


@pytest.fixture(scope="module")
def online():
    iterator = _config().instantiate(split="train").iterator()
    return [next(iterator) for _ in range(STEPS)], iterator.accounting()


def _assert_equal(batch, expected):
    for field in dataclasses.fields(expected):
        left, right = getattr(batch, field.name), getattr(expected, field.name)
        np.testing.assert_array_equal(left, right, field.name)


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_from_a_snapshot_equal_those_of_the_input(folders, online, form, num_workers):
    batches, accounting = online
    config = _config(snapshot=str(folders[form]), num_workers=num_workers)
    iterator = config.instantiate(split="train").iterator()
    for expected in batches:
        _assert_equal(next(iterator), expected)
    assert iterator.accounting() == accounting
    iterator.close()


@pytest.mark.parametrize("form", Form)
def test_hosts_read_their_own_rows_and_a_state_resumes_on_other_hosts(folders, online, form):
    made = _config(snapshot=str(folders[form])).instantiate(split="train")
    half = made.iterator(range(4, 8))
    _assert_equal_rows(next(half), online[0][0], slice(4, 8))
    state = json.loads(json.dumps(half.get_state()))
    whole = made.iterator()
    whole.set_state(state)
    _assert_equal(next(whole), online[0][1])


def _assert_equal_rows(batch, expected, rows):
    np.testing.assert_array_equal(batch.tokens, expected.tokens[rows])
    np.testing.assert_array_equal(batch.image_index, expected.image_index[rows])


@pytest.mark.parametrize("form", Form)
def test_a_run_of_the_input_resumes_from_its_snapshot(folders, online, form):
    first = _config().instantiate(split="train").iterator()
    next(first)
    second = _config(snapshot=str(folders[form])).instantiate(split="train").iterator()
    second.set_state(first.get_state())
    _assert_equal(next(second), online[0][1])


def test_rows_do_not_read_the_records(folders, online, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a source was built")

    monkeypatch.setattr("drawn_corpus.DrawnSource.__init__", refuse)
    config = _config(snapshot=str(folders[Form.ROWS]))
    _assert_equal(next(config.instantiate(split="train").iterator()), online[0][0])


def test_an_unreadable_record_stays_unscored_and_is_named(tmp_path):
    made = _config().instantiate(split="train")

    class Failing(CorpusExamples):
        def example(self, row, place):
            if self.record_number(row, place) % 5 == 0:
                raise BadRecord("the disk failed")
            return super().example(row, place)

    failing = Failing(made.corpora, made.lengths, made.example_builder)
    write(tmp_path / "rows", Form.ROWS, _config(), failing)
    log = tmp_path / "quarantine.jsonl"
    config = _config(snapshot=str(tmp_path / "rows"))
    iterator = config.instantiate(split="train", quarantine_path=log).iterator()
    next(iterator)
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    failed = [entry for entry in entries if entry["reason"] == "the disk failed"]
    assert failed and all(entry["record"] % 5 == 0 for entry in failed)


@pytest.mark.parametrize("form", Form)
def test_a_snapshot_of_another_input_is_rejected_with_the_differences(folders, form):
    config = _config(snapshot=str(folders[form]), seed=1)
    with pytest.raises(ValueError, match=r"with different batches:\n  seed: 0 of the snapshot, 1"):
        config.instantiate(split="train")


def test_reading_past_the_end_of_a_snapshot_is_an_error(folders):
    iterator = _config(snapshot=str(folders[Form.IDS])).instantiate(split="train").iterator()
    list(itertools.islice(iterator, STEPS))
    with pytest.raises(ValueError, match=r"ends after 4 steps.*trainer.max_steps"):
        next(iterator)


def test_a_folder_without_a_snapshot_names_the_fix(tmp_path, folders):
    with pytest.raises(ValueError, match=r"snapshot.json is missing.*python -m mm1_jax snapshot"):
        Snapshot(tmp_path)
    shutil.copytree(folders[Form.IDS], tmp_path / "old")
    (tmp_path / "old" / SNAPSHOT).write_text('{"version": 0}')
    with pytest.raises(ValueError, match=r"cannot be read \(version 0, expected 1\)"):
        Snapshot(tmp_path / "old")
