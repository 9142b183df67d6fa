import contextlib
import itertools
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mm1_jax.batch import Text
from mm1_jax.data.corpora import embedded, scenes
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.corpora.embedded import Kind
from mm1_jax.data.corpora.interleaved import interleaved_document
from mm1_jax.data.examples import ExampleBuilder
from mm1_jax.data.lengths import Lengths, compute_lengths, corpus_lengths
from mm1_jax.data.record_files import Manifest, RecordKind, ShardWriter
from mm1_jax.data.sources.array_record import ArrayRecordSource
from mm1_jax.data.splitting import DocumentPiece, Splitter

NUM_RECORDS = 30


def _page(i):
    """A page of up to 12 texts and pictures, every third a picture; page 7 is unusable."""
    rng = np.random.default_rng(i)
    texts, images = [], []
    for place in range(1 if i == 7 else int(rng.integers(2, 13))):
        is_image = place % 3 == 1
        words = " ".join(rng.choice(["red.", "circle", "of", "two"], 40))
        texts.append(None if is_image or i == 7 else f"{i}/{place} {words}")
        images.append(b"picture" if is_image else None)
    return {"id": str(i), "texts": texts, "images": images}


@pytest.fixture
def folder(tmp_path):
    with ShardWriter(tmp_path, "records-00000-00.array_record") as writer:
        for i in range(NUM_RECORDS):
            writer.write(_page(i))
    Manifest(RecordKind.INTERLEAVED, (writer.shard,)).write(tmp_path)
    return tmp_path


@pytest.fixture
def builder(tokenizer):
    return ExampleBuilder(tokenizer, num_image_tokens=4, max_sequence_length=128, max_images=3)


def make(folder, **splitter):
    cfg = Corpus.default_config().set(
        name="pages",
        source=ArrayRecordSource.default_config().set(path=str(folder)),
        to_document=interleaved_document,
        splitter=Splitter.default_config().set(**(dict(block_characters=100) | splitter)),
    )
    return cfg.instantiate(split="train")


def test_every_example_has_the_length_in_the_table(folder, builder):
    corpus = make(folder)
    lengths = compute_lengths(corpus, builder)
    assert len(lengths) > len(corpus) and lengths.num_truncated == 0
    for index in range(len(lengths)):
        if lengths.table[index, 0]:
            example = builder.example(corpus.piece(lengths.piece(index)))
            found = (len(example.tokens), len(example.images))
            assert found == tuple(lengths.table[index]) and max(found) <= 128


def test_examples_of_a_page_contain_all_text_once_and_a_single_end(folder, builder):
    corpus = make(folder)
    lengths = compute_lengths(corpus, builder)
    for record, group in itertools.groupby(range(len(lengths)), lambda i: lengths.piece(i).record):
        if (record,) in [(entry.record,) for entry in lengths.unusable]:
            continue
        pieces = [corpus.piece(lengths.piece(index)) for index in group]
        texts = [s.text for piece in pieces for s in piece.segments if isinstance(s, Text)]
        whole = [s.text for s in corpus.document(record).segments if isinstance(s, Text)]
        assert " ".join(texts) == " ".join(whole)
        assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        images = sum(len(piece.images) for piece in pieces)
        assert images == len(corpus.document(record).images)


def test_an_unusable_page_is_named_and_keeps_its_index(folder, builder):
    lengths = compute_lengths(make(folder), builder)
    (entry,) = lengths.unusable
    assert (entry.corpus, entry.record) == ("pages", 7) and "place 0 has no text" in entry.reason
    (index,) = np.flatnonzero(lengths.table[:, 0] == 0)
    assert lengths.piece(int(index)) == DocumentPiece(7)
    assert lengths.num_usable == len(lengths) - 1


def _assert_equal(a, b):
    np.testing.assert_array_equal(a.table, b.table)
    np.testing.assert_array_equal(a.pieces, b.pieces)
    assert (a.unusable, a.num_truncated, a.digest) == (b.unusable, b.num_truncated, b.digest)
    assert (a.longest, a.means, a.num_usable) == (b.longest, b.means, b.num_usable)


def test_a_stored_table_equals_the_computed_one_in_workers_too(folder, builder):
    computed = compute_lengths(make(folder), builder)
    stored = computed.store(folder / "lengths" / "x")
    _assert_equal(stored, computed)
    sent = pickle.dumps(stored)
    assert len(sent) < 500, "the table itself is sent"
    _assert_equal(pickle.loads(sent), computed)


def test_a_table_is_made_once_and_remade_after_relevant_changes(folder, builder, capsys):
    def tables():
        return {path.name for path in (folder / "lengths").iterdir()}

    first = corpus_lengths(make(folder), builder)
    assert "'pages'" in capsys.readouterr().err
    _assert_equal(corpus_lengths(make(folder), builder), first)
    assert capsys.readouterr().err == "" and len(tables()) == 1
    corpus_lengths(make(folder, block_characters=50), builder)
    builder.max_sequence_length = 200
    corpus_lengths(make(folder), builder)
    assert len(tables()) == 3


def test_a_read_only_folder_costs_only_time(folder, builder, monkeypatch):
    def refuse(self, path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Lengths, "store", refuse)
    _assert_equal(corpus_lengths(make(folder), builder), compute_lengths(make(folder), builder))


def test_workers_make_the_same_table(folder, builder, monkeypatch):
    monkeypatch.setattr("mm1_jax.data.lengths._CHUNK", 8)
    alone = compute_lengths(make(folder), builder)
    _assert_equal(compute_lengths(make(folder), builder, num_workers=2), alone)


def test_lengths_of_drawn_records_are_cached_for_a_version_of_the_code(
    tmp_path, builder, in_process, monkeypatch, capsys
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cfg = scenes.corpus(Kind.QUESTIONS)
    cfg.source.num_records = 20

    def lengths_by(hosts=None, split="train"):
        counting = Counting(cfg.instantiate(split=split))
        return corpus_lengths(counting.corpus, builder, hosts=hosts), len(counting.read)

    first, num_read = lengths_by()
    assert num_read == 20
    again, num_read = lengths_by()
    assert num_read == 0
    _assert_equal(again, first)
    held_out, num_read = lengths_by(split="test")
    assert len(held_out) == num_read == 5
    # Hosts have caches of their own, and exchange nothing.
    assert lengths_by(hosts=Hosts(1, threading.Barrier(2), [None, None]))[1] == 0
    monkeypatch.setattr(embedded, "_code_digest", lambda: "another version")
    assert lengths_by()[1] == 20
    assert capsys.readouterr().err == ""


class Hosts:
    """Threads that stand for the processes of a run."""

    def __init__(self, index, barrier, values):
        self._index, self._barrier, self._values = index, barrier, values

    def process_index(self):
        return self._index

    def process_count(self):
        return self._barrier.parties

    def exchange(self, value):
        self._values[self._index] = value
        self._barrier.wait(30)
        values = list(self._values)
        self._barrier.wait(30)
        return values

    @contextlib.contextmanager
    def together(self):
        error = None
        try:
            yield
        except (ValueError, OSError) as raised:
            error = raised
        failed = [each for each in self.exchange(error) if each is not None]
        if failed:
            raise ValueError(str(failed[0]))


class Counting:
    """Counts the documents that a process reads, of a corpus of its own."""

    def __init__(self, corpus):
        self.corpus, self.read, document = corpus, [], corpus.document
        corpus.document = lambda index: self.read.append(index) or document(index)


def by_hosts(number, call):
    """Returns the results or errors of `call(index, hosts)` in as many threads."""
    barrier, values = threading.Barrier(number), [None] * number

    def run(index):
        try:
            return call(index, Hosts(index, barrier, values))
        except ValueError as error:
            return error

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(run, range(number)))


@pytest.fixture
def in_process(monkeypatch):
    """Reads documents by the corpora that are given, which count them."""
    pairs = {}

    def dumps(pair):
        key = str(id(pair[0])).encode()
        pairs[key] = pair
        return key

    monkeypatch.setattr("mm1_jax.data.lengths.cloudpickle.dumps", dumps)
    monkeypatch.setattr("mm1_jax.data.lengths._unpacked", pairs.__getitem__)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_hosts_divide_the_records_evenly(folder, builder, in_process, number):
    corpora = [Counting(make(folder)) for _ in range(number)]
    tables = by_hosts(
        number, lambda i, hosts: corpus_lengths(corpora[i].corpus, builder, hosts=hosts)
    )
    alone = compute_lengths(make(folder), builder)
    for table in tables:
        _assert_equal(table, alone)
    shares = [len(each.read) for each in corpora]
    assert max(shares) - min(shares) <= 1
    assert sorted(sum((each.read for each in corpora), [])) == list(range(len(make(folder))))
    # Only the joined table stays, and later launches load it.
    assert [path.suffix for path in (folder / "lengths").iterdir()] == [""]
    again = Counting(make(folder))
    _assert_equal(corpus_lengths(again.corpus, builder), alone)
    assert again.read == []


def test_more_hosts_than_records_share_them(folder, builder):
    number = NUM_RECORDS + 3
    tables = by_hosts(number, lambda i, hosts: corpus_lengths(make(folder), builder, hosts=hosts))
    _assert_equal(tables[-1], compute_lengths(make(folder), builder))


def test_hosts_that_cannot_store_shares_compute_all(folder, builder, monkeypatch):
    def refuse(self, path):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Lengths, "store", refuse)
    tables = by_hosts(3, lambda i, hosts: corpus_lengths(make(folder), builder, hosts=hosts))
    for table in tables:
        _assert_equal(table, compute_lengths(make(folder), builder))


def test_an_error_of_one_host_ends_all(folder, builder, in_process):
    def call(index, hosts):
        corpus = make(folder)
        if index == 2:
            corpus.document = lambda index: Path("/nowhere").read_bytes()
        return corpus_lengths(corpus, builder, hosts=hosts)

    errors = by_hosts(3, call)
    assert all("/nowhere" in str(error) for error in errors)


def test_the_digest_depends_on_lengths_and_parts():
    table = np.ones((4, 2), np.int32)
    pieces = np.array([[0, 0, 2], [0, 2, 3], [1, 0, -1], [2, 0, -1]], np.int32)
    digests = {
        Lengths(table).digest,
        Lengths(table * 2).digest,
        Lengths(table, pieces).digest,
        Lengths(table, pieces + [[0, 1, 0]] * 4).digest,
    }
    assert len(digests) == 4
