"""Numbers of positions and images of every example of a corpus, the only input of packing.

An example is a record, or a piece of a record that is longer than a row. The table of records on
disk is computed once and cached beside the records: each host of a run computes a share of it, by
`num_workers` processes. A change of the records, the tokenizer or a size leads to a new table.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import cloudpickle
import numpy as np
import tqdm
from absl import logging
from jaxtyping import Int

from mm1_jax.batch import Document
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.examples import ExampleBuilder
from mm1_jax.data.quarantine import Quarantined
from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.splitting import ConversationSplitter, DocumentPiece, TooLong
from mm1_jax.storage import whole_folder

# Incremented to invalidate cached tables when their computation changes.
_VERSION = 1
# Records per task of a worker process; a corpus of no more than one task starts no processes.
_CHUNK = 4096
_DIGEST_ROWS = 1 << 20


@runtime_checkable
class Hosts(Protocol):
    """The processes of a run, such as `mm1_jax.multihost.distributed`."""

    def process_index(self) -> int: ...

    def process_count(self) -> int: ...

    def exchange(self, value: Any) -> list[Any]:
        """Returns the values of all processes, in order."""

    def together(self) -> AbstractContextManager[None]:
        """Raises in all processes if the block raises ValueError or OSError in any."""


class _Chunk(NamedTuple):
    """The examples of a run of records, in the form of `Lengths`."""

    table: np.ndarray
    pieces: np.ndarray
    unusable: list[Quarantined]
    refused: list[Quarantined]
    num_truncated: int

    @classmethod
    def empty(cls) -> "_Chunk":
        return cls(np.zeros((0, 2), np.int32), np.zeros((0, 3), np.int32), [], [], 0)


class Lengths:
    """Numbers of positions and images of the examples of a corpus; (0, 0) for unusable ones.

    Attributes:
        table: Int [n, 2], positions and images of each example.
        pieces: Int [n, 3], the record of each example, its first block, and the end of its blocks
            (-1 means all of them). None if every record is one example.
        unusable: The records that yield no example, with reasons.
        refused: The conversations that a splitter refuses as too long, with reasons.
        num_truncated: Number of examples that are truncated to fit in a row, and of conversations
            that lost rounds.
    """

    def __init__(
        self,
        table: Int[np.ndarray, "n 2"],
        pieces: Int[np.ndarray, "n 3"] | None = None,
        unusable: Sequence[Quarantined] = (),
        num_truncated: int = 0,
        refused: Sequence[Quarantined] = (),
    ):
        self.table = table
        self.pieces = pieces
        self.unusable = list(unusable)
        self.refused = list(refused)
        self.num_truncated = num_truncated
        self._folder: Path | None = None

    def __len__(self) -> int:
        return len(self.table)

    def piece(self, index: int) -> DocumentPiece:
        """Returns the record of an example, and its blocks within the record."""
        if self.pieces is None:
            return DocumentPiece(index)
        record, first, end = self.pieces[index].tolist()
        return DocumentPiece(record) if end < 0 else DocumentPiece(record, first, end)

    @functools.cached_property
    def num_usable(self) -> int:
        return sum(int(np.count_nonzero(rows[:, 0])) for rows in self._runs(self.table))

    @functools.cached_property
    def longest(self) -> tuple[int, int]:
        """The largest number of positions, and the largest number of images, of an example."""
        longest = np.zeros(2, np.int64)
        for rows in self._runs(self.table):
            longest = np.maximum(longest, rows.max(axis=0, initial=0))
        return int(longest[0]), int(longest[1])

    @functools.cached_property
    def means(self) -> tuple[float, float]:
        """The mean numbers of positions and images of usable examples."""
        total = np.zeros(2, np.int64)
        for rows in self._runs(self.table):
            total += rows.sum(axis=0, dtype=np.int64)
        return int(total[0]) / self.num_usable, int(total[1]) / self.num_usable

    def describe(self) -> str:
        """Summarizes the examples for people to read."""
        tokens, images = self.means if self.num_usable else (0.0, 0.0)
        text = f"{self.num_usable:,} documents of {tokens:.1f} positions and {images:.1f} images"
        if self.num_truncated:
            text += f", {self.num_truncated:,} truncated to fit in a row"
        if self.refused:
            text += f", {len(self.refused):,} refused as too long"
        if self.unusable:
            text += f", {len(self.unusable):,} unusable"
        return text

    @functools.cached_property
    def digest(self) -> str:
        """A digest of the lengths and of the blocks of each example."""
        digest = hashlib.blake2b(digest_size=8)
        for array in (self.table, self.pieces):
            for rows in () if array is None else self._runs(array):
                digest.update(np.ascontiguousarray(rows, "<i4").tobytes())
        return digest.hexdigest()

    @staticmethod
    def _runs(array: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the array in chunks that fit in memory, at least one."""
        for start in range(0, max(1, len(array)), _DIGEST_ROWS):
            yield array[start : start + _DIGEST_ROWS]

    def store(self, folder: Path) -> "Lengths":
        """Writes the table atomically; returns one that reads it from disk."""
        with whole_folder(folder) as partial:
            # 16 bits suffice for the row sizes in use.
            small = max(self.longest) < 1 << 16
            np.save(partial / "table.npy", self.table.astype(np.uint16 if small else np.int32))
            if self.pieces is not None:
                np.save(partial / "parts.npy", self.pieces)
            facts = {
                "digest": self.digest,
                "num_usable": self.num_usable,
                "longest": self.longest,
                "means": self.means if self.num_usable else (0.0, 0.0),
                "num_truncated": self.num_truncated,
                "unusable": self.unusable,
                "refused": self.refused,
            }
            (partial / "facts.json").write_text(json.dumps(facts))
        return Lengths.load(folder)

    @classmethod
    def load(cls, folder: Path) -> "Lengths":
        """Loads what `store` wrote; the arrays stay on disk, memory-mapped."""
        lengths = cls.__new__(cls)
        lengths.__setstate__({"_folder": folder})
        return lengths

    def __getstate__(self) -> dict[str, Any]:
        # Pickle would copy a memory map into an array.
        return self.__dict__ if self._folder is None else {"_folder": self._folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._folder is None:
            return
        facts = json.loads((self._folder / "facts.json").read_text())
        self.table = np.load(self._folder / "table.npy", mmap_mode="r", allow_pickle=False)
        pieces = self._folder / "parts.npy"
        self.pieces = (
            np.load(pieces, mmap_mode="r", allow_pickle=False) if pieces.exists() else None
        )
        self.unusable = [Quarantined(*entry) for entry in facts.pop("unusable")]
        # Tables written before conversations could be refused have no such list.
        self.refused = [Quarantined(*entry) for entry in facts.pop("refused", ())]
        for name in ("longest", "means"):
            facts[name] = tuple(facts[name])
        self.__dict__.update(facts)


def corpus_lengths(
    corpus: Corpus,
    example_builder: ExampleBuilder,
    *,
    num_workers: int = 0,
    hosts: Hosts | None = None,
) -> Lengths:
    """Returns the table of a corpus, computing and caching it beside the records if needed.

    Args:
        hosts: The processes that share the work; each of them makes this call.
    """
    source = corpus.source
    if source.cache_dir is None:
        return compute_lengths(corpus, example_builder, num_workers=num_workers)
    identity = [_VERSION, corpus.fingerprint(), example_builder.fingerprint()]
    if source.code_digest is not None:
        # Unlike that of files, their fingerprint does not tell the split.
        identity += [source.code_digest, source.split]
        # Each host has a folder of its own.
        hosts = None
    key = hashlib.blake2b(json.dumps(identity).encode(), digest_size=12).hexdigest()
    folder = source.cache_dir / "lengths" / key
    is_cached = (folder / "facts.json").is_file()
    # A file system may show a new file to some hosts before others.
    if is_cached if hosts is None else all(hosts.exchange(is_cached)):
        return Lengths.load(folder)
    started = time.monotonic()
    if hosts is None or hosts.process_count() == 1:
        lengths = compute_lengths(corpus, example_builder, num_workers=num_workers)
        try:
            lengths = lengths.store(folder)
        except OSError as error:
            logging.warning("%s: the table of lengths is not cached (%s)", folder, error.strerror)
        # A table of drawn records takes seconds, and is not worth a line.
        is_told = source.code_digest is None
    else:
        lengths = _shared(folder, corpus, example_builder, num_workers, hosts)
        is_told = hosts.process_index() == 0
    if is_told:
        print(
            f"Lengths of {corpus.name!r}: {len(lengths):,} examples of {len(corpus):,} records, "
            f"{time.monotonic() - started:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    return lengths


def _shared(
    folder: Path, corpus: Corpus, example_builder: ExampleBuilder, num_workers: int, hosts: Hosts
) -> Lengths:
    """Computes the share of this process, and joins the shares of all of them in `folder`."""
    index, count = hosts.process_index(), hosts.process_count()
    parts = [folder.with_name(f"{folder.name}.parts") / f"{i}_of_{count}" for i in range(count)]
    with hosts.together():
        own = compute_lengths(
            corpus,
            example_builder,
            num_workers=num_workers,
            records=range(len(corpus) * index // count, len(corpus) * (index + 1) // count),
        )
    try:
        own.store(parts[index])
        reason = None
    except OSError as error:
        reason = error.strerror
    reasons = [each for each in hosts.exchange(reason) if each is not None]
    if reasons:
        logging.warning("%s: the hosts cannot share the lengths (%s)", folder, reasons[0])
        return compute_lengths(corpus, example_builder, num_workers=num_workers)
    with hosts.together():
        if index == 0:
            _joined([Lengths.load(part) for part in parts]).store(folder)
            shutil.rmtree(parts[0].parent, ignore_errors=True)
    return Lengths.load(folder)


def _joined(parts: Sequence[Lengths]) -> Lengths:
    """Joins the tables of consecutive ranges of records."""
    pieces = [part.pieces for part in parts if part.pieces is not None]
    return Lengths(
        np.concatenate([np.asarray(part.table, np.int32) for part in parts]),
        np.concatenate(pieces) if pieces else None,
        [entry for part in parts for entry in part.unusable],
        sum(part.num_truncated for part in parts),
        [entry for part in parts for entry in part.refused],
    )


def compute_lengths(
    corpus: Corpus,
    example_builder: ExampleBuilder,
    *,
    num_workers: int = 0,
    records: range | None = None,
) -> Lengths:
    """Computes the table from the documents of a corpus, without decoding images.

    Args:
        records: The records to read; defaults to all.
    """
    records = range(len(corpus)) if records is None else records
    spans = [records[start : start + _CHUNK] for start in range(0, len(records), _CHUNK)]
    # Config classes are created inside functions; standard pickle finds classes by name only.
    chunk_of = functools.partial(_chunk_of, cloudpickle.dumps((corpus, example_builder)))
    with tqdm.tqdm(
        total=len(records), desc=f"lengths of {corpus.name}", unit=" records", delay=3, disable=None
    ) as progress:
        chunks = [_Chunk.empty()]
        for chunk, span in zip(_map(chunk_of, spans, num_workers), spans, strict=True):
            chunks.append(chunk)
            progress.update(len(span))
    pieces = None
    if corpus.splitter is not None:
        pieces = np.concatenate([chunk.pieces for chunk in chunks])
    return Lengths(
        np.concatenate([chunk.table for chunk in chunks]),
        pieces,
        [entry for chunk in chunks for entry in chunk.unusable],
        sum(chunk.num_truncated for chunk in chunks),
        [entry for chunk in chunks for entry in chunk.refused],
    )


def _map(chunk_of: Any, spans: Sequence[range], num_workers: int) -> Iterable[_Chunk]:
    if num_workers < 2 or len(spans) < 2:
        yield from map(chunk_of, spans)
        return
    # Spawned: forking a process that runs threads, as grain and jax do, may hang.
    context = multiprocessing.get_context("spawn")
    workers = min(num_workers, len(spans), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(chunk_of, spans)


@functools.lru_cache(maxsize=1)
def _unpacked(packed: bytes) -> tuple[Corpus, ExampleBuilder]:
    return cloudpickle.loads(packed)


def _chunk_of(packed: bytes, span: range) -> _Chunk:
    corpus, example_builder = _unpacked(packed)
    table: list[tuple[int, int]] = []
    pieces: list[tuple[int, int, int]] = []
    unusable, refused = [], []
    truncated_before = example_builder.num_truncated
    for record in span:
        try:
            examples = list(_examples(corpus, example_builder, record))
        except BadRecord as error:
            examples = [(DocumentPiece(record), (0, 0))]
            # A splitter refuses conversations on purpose; without one, a long one is an error.
            is_refused = isinstance(error, TooLong) and corpus.splitter is not None
            found = refused if is_refused else unusable
            found.append(Quarantined(corpus.name, record, 0, str(error)))
        for piece, lengths in examples:
            table.append(lengths)
            pieces.append((piece.record, piece.first, -1 if piece.end is None else piece.end))
    return _Chunk(
        np.array(table, np.int32).reshape(-1, 2),
        np.array(pieces, np.int32).reshape(-1, 3),
        unusable,
        refused,
        example_builder.num_truncated - truncated_before,
    )


def _examples(
    corpus: Corpus, example_builder: ExampleBuilder, record: int
) -> Iterator[tuple[DocumentPiece, tuple[int, int]]]:
    """Yields the examples of a record with their numbers of positions and images."""
    document = corpus.document(record)
    splitter, max_images = corpus.splitter, example_builder.max_images
    if splitter is None:
        yield DocumentPiece(record), example_builder.lengths(document)
        return
    longest = example_builder.max_sequence_length
    if splitter.max_positions is not None:
        longest = min(longest, splitter.max_positions)
    if isinstance(splitter, ConversationSplitter):
        yield from _rounds(document, splitter, example_builder, record, longest)
        return
    tiled = example_builder.tiled(document)
    positions = sum(example_builder.sizes(tiled)) + document.ends
    if positions <= longest and len(tiled.images) <= max_images:
        yield DocumentPiece(record), (positions, len(tiled.images))
        return
    blocks = splitter.blocks(document)
    # A piece may have few enough pictures for tiles where the document has too many.
    shown = [example_builder.tiled(Document((segment,))) for segment in blocks.segments]
    pieces = splitter.pieces(
        [sum(example_builder.sizes(each)) for each in shown],
        [len(each.images) for each in shown],
        # One position is reserved for the end-of-sequence token.
        max_tokens=longest - 1,
        max_images=max_images,
    )
    if not pieces:
        raise BadRecord("a long page without text")
    for run in pieces:
        piece = blocks.piece(run.start, run.stop)
        yield DocumentPiece(record, run.start, run.stop), example_builder.lengths(piece)


def _rounds(
    document: Document,
    splitter: ConversationSplitter,
    example_builder: ExampleBuilder,
    record: int,
    longest: int,
) -> Iterator[tuple[DocumentPiece, tuple[int, int]]]:
    """Yields a conversation, or the pieces of one that is longer than a row."""
    unlimited = example_builder.without_limits()

    def fits(document: Document) -> bool:
        positions, images = unlimited.lengths(document)
        return positions <= longest and images <= example_builder.max_images

    if fits(document):
        yield DocumentPiece(record), unlimited.lengths(document)
        return
    try:
        pieces, num_lost = splitter.pieces(document, fits)
    except TooLong as error:
        positions, images = unlimited.lengths(document)
        raise TooLong(
            f"the conversation takes {positions} positions and {images} images, and a row has "
            f"{longest} and {example_builder.max_images}: {error}"
        ) from None
    example_builder.num_truncated += num_lost > 0
    for run in pieces:
        piece = DocumentPiece(record, run.start, run.stop)
        yield piece, unlimited.lengths(splitter.piece(document, piece))
