"""Snapshots: a mixture that is sampled once, stored, and read back (MM1 trains on snapshots).

    DIR/snapshot.json                   steps, form, and the fingerprint of the Input
    DIR/rows.npy, records.npy           the records of every row, 12 bytes per record
    DIR/manifest.json, *.array_record   form "rows" only: the examples of every row, with their
                                        encoded images

Training from either form gets the batches of the Input itself, bit for bit. A snapshot of rows no
longer needs the records. It still needs the tokenizer, from which the model takes its ids.
"""

import enum
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from mm1_jax.batch import Document, Example, Image, Record, View
from mm1_jax.data.corpora.base import Corpus
from mm1_jax.data.examples import ExampleBuilder
from mm1_jax.data.lengths import Lengths
from mm1_jax.data.packing import PlannedRecord, PlannedRow
from mm1_jax.data.record_files import BadRecord, Manifest, RecordFiles, RecordKind, ShardWriter
from mm1_jax.storage import write_whole

SNAPSHOT = "snapshot.json"
_VERSION = 1
_MAX_SHARD_BYTES = 512 << 20

_RECORD = np.dtype(
    [
        ("index", "<u4"),
        ("num_tokens", "<u2"),
        ("epoch", "<u2"),
        ("corpus", "<u2"),
        ("num_images", "<u2"),
    ]
)


class Form(enum.Enum):
    """The content of a stored row."""

    IDS = "ids"  # The ids of its records.
    ROWS = "rows"  # Its examples and images, too.


@runtime_checkable
class Examples(Protocol):
    """Provides the examples of planned rows."""

    def example(self, row: PlannedRow, place: int) -> Example:
        """Returns the example at a place of a row; raises BadRecord if it is unusable."""
        ...

    def record_number(self, row: PlannedRow, place: int) -> int:
        """Returns the number, within its corpus, of the record that the example is made from."""
        ...


class CorpusExamples:
    """Builds examples from the records of corpora."""

    def __init__(
        self,
        corpora: Sequence[Corpus],
        lengths: Sequence[Lengths],
        example_builder: ExampleBuilder,
    ):
        self._corpora = corpora
        self._lengths = lengths
        self._example_builder = example_builder

    def example(self, row: PlannedRow, place: int) -> Example:
        return self._example_builder.example(self.document(row, place))

    def document(self, row: PlannedRow, place: int) -> Document:
        """Returns the document that the example is made from; raises BadRecord if there is none."""
        record = row.records[place]
        piece = self._lengths[record.corpus].piece(record.index)
        return self._corpora[record.corpus].piece(piece)

    def record_number(self, row: PlannedRow, place: int) -> int:
        record = row.records[place]
        return self._lengths[record.corpus].piece(record.index).record


class Snapshot:
    """A snapshot on disk; provides `Examples` if its form is ROWS."""

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            facts = json.loads((folder / SNAPSHOT).read_text(encoding="utf-8"))
            if facts["version"] != _VERSION:
                raise ValueError(f"version {facts['version']}, expected {_VERSION}")
            self.form = Form(facts["form"])
            self.num_steps: int = facts["num_steps"]
            self.batch_size: int = facts["batch_size"]
            self.fingerprint: dict[str, Any] = facts["fingerprint"]
            # The number of examples of each corpus, by name.
            self.corpora: dict[str, int] = facts["corpora"]
        except FileNotFoundError as error:
            raise ValueError(
                f"input.snapshot={str(folder)!r} holds no snapshot: {SNAPSHOT} is missing. Make "
                "one with `python -m mm1_jax snapshot`."
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"input.snapshot={str(folder)!r} cannot be read ({error}); make it again with "
                "`python -m mm1_jax snapshot`"
            ) from error
        self._open()

    def _open(self) -> None:
        self._rows = np.load(self.folder / "rows.npy", mmap_mode="r", allow_pickle=False)
        self._records = np.load(self.folder / "records.npy", mmap_mode="r", allow_pickle=False)
        self._files = RecordFiles(self.folder) if self.form is Form.ROWS else None
        self._last: tuple[int, list[Record]] = (-1, [])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def planner(self, rows: range) -> "SnapshotPlanner":
        """Returns a planner of the given rows of every batch, at step 0."""
        return SnapshotPlanner(self, rows)

    def row(self, number: int) -> PlannedRow:
        """Returns a row by its number, counted from the first row of the first step."""
        stream, start = self._rows[number].tolist()
        stop = int(self._rows[number + 1, 1])
        records = tuple(
            PlannedRecord(corpus, epoch, index, num_tokens, num_images)
            for index, num_tokens, epoch, corpus, num_images in self._records[start:stop].tolist()
        )
        return PlannedRow(stream, records, number)

    def example(self, row: PlannedRow, place: int) -> Example:
        stored = self._stored(row, place)
        if "bad" in stored:
            raise BadRecord(stored["bad"])
        return Example(
            tokens=np.frombuffer(stored["tokens"], "<i4").astype(np.int32),
            targets=np.frombuffer(stored["targets"], "<i4").astype(np.int32),
            loss_mask=np.frombuffer(stored["loss_mask"], np.bool_),
            images=_images(stored["images"]),
        )

    def record_number(self, row: PlannedRow, place: int) -> int:
        return self._stored(row, place)["record"]

    def _stored(self, row: PlannedRow, place: int) -> Record:
        assert self._files is not None, "a snapshot of ids has no examples"
        if self._last[0] != row.number:
            self._last = (row.number, self._files[row.number]["examples"])
        return self._last[1][place]


class SnapshotPlanner:
    """Reads the plan of the given rows of successive batches; its state is `step`."""

    def __init__(self, snapshot: Snapshot, rows: range):
        self._snapshot = snapshot
        self._rows = rows
        self.step = 0
        # A placeholder, as only the step is saved; saved states hold an array of this rank.
        self.next_index = np.zeros((1, 1), np.int64)

    def next_rows(self) -> list[PlannedRow]:
        """Returns the rows of the current step and advances to the next."""
        if self.step >= self._snapshot.num_steps:
            raise ValueError(
                f"The snapshot {self._snapshot.folder} ends after {self._snapshot.num_steps} "
                "steps. Make a longer one with `python -m mm1_jax snapshot`, or set "
                "trainer.max_steps."
            )
        first = self.step * self._snapshot.batch_size
        self.step += 1
        return [self._snapshot.row(first + row) for row in self._rows]

    def skip(self) -> None:
        """Advances to the next step."""
        self.step += 1

    def restore(self, step: int, next_index: Int[np.ndarray, "v k"]) -> None:
        """Moves to the step of a state saved with the snapshot or with its original Input."""
        self.step = step


def write_snapshot(
    folder: Path,
    form: Form,
    steps: Iterator[Sequence[PlannedRow]],
    *,
    examples: Examples,
    facts: dict[str, Any],
    progress: Callable[[], object],
) -> None:
    """Writes the rows of all steps, and last the file that makes the snapshot valid.

    Args:
        facts: Number of steps, batch size, corpora and fingerprint.
        progress: Called after each step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SNAPSHOT).unlink(missing_ok=True)
    rows: list[tuple[int, int]] = []
    records: list[np.ndarray] = []
    num_records = 0
    writer = _RowWriter(folder, examples) if form is Form.ROWS else None
    for planned in steps:
        for row in planned:
            rows.append((row.stream, num_records))
            num_records += len(row.records)
            fields = [(r.index, r.num_tokens, r.epoch, r.corpus, r.num_images) for r in row.records]
            records.append(np.array(fields, _RECORD))
            if writer is not None:
                writer.write(row)
        progress()
    if writer is not None:
        writer.close()
    np.save(folder / "rows.npy", np.array([*rows, (0, num_records)], np.int64))
    np.save(folder / "records.npy", np.concatenate(records))
    content = {"version": _VERSION, "form": form.value, **facts}
    write_whole(folder / SNAPSHOT, json.dumps(content, indent=1) + "\n")


class _RowWriter:
    """Writes rows into shards of bounded size."""

    def __init__(self, folder: Path, examples: Examples):
        self._folder = folder
        self._examples = examples
        self._shards = []
        self._writer = self._next()

    def write(self, row: PlannedRow) -> None:
        if self._writer.num_bytes >= _MAX_SHARD_BYTES:
            self._finish()
            self._writer = self._next()
        places = range(len(row.records))
        self._writer.write({"examples": [self._stored(row, place) for place in places]})

    def close(self) -> None:
        self._finish()
        Manifest(RecordKind.ROWS, tuple(self._shards)).write(self._folder)

    def _next(self) -> ShardWriter:
        return ShardWriter(self._folder, f"rows-{len(self._shards):05}.array_record")

    def _finish(self) -> None:
        with self._writer:
            pass
        self._shards.append(self._writer.shard)

    def _stored(self, row: PlannedRow, place: int) -> Record:
        record = {"record": self._examples.record_number(row, place)}
        try:
            example = self._examples.example(row, place)
        except BadRecord as error:
            return record | {"bad": str(error)}
        return record | {
            "tokens": example.tokens.astype("<i4").tobytes(),
            "targets": example.targets.astype("<i4").tobytes(),
            "loss_mask": example.loss_mask.tobytes(),
            "images": [_stored_view(image) for image in example.images],
        }


def _stored_view(image: Image) -> Any:
    """Returns an image that shows a whole picture as the picture; others with their view.

    Further views of a picture do not repeat it.
    """
    if image.view is None and not image.continues:
        return _stored_image(image)
    stored = {} if image.continues else {"picture": _stored_image(image)}
    return stored | {"view": None if image.view is None else list(image.view)}


def _images(stored: Sequence[Any]) -> tuple[Image, ...]:
    images: list[Image] = []
    for entry in stored:
        if not (isinstance(entry, dict) and "view" in entry):
            images.append(Image(_image_data(entry)))
            continue
        view = None if entry["view"] is None else View(*entry["view"])
        continues = "picture" not in entry
        data = images[-1].data if continues else _image_data(entry["picture"])
        images.append(Image(data, view, is_tiled=False, continues=continues))
    return tuple(images)


def _stored_image(image: Image) -> Any:
    """Returns an encoded image unchanged, or pixels as bytes with their shape."""
    data = image.data() if callable(image.data) else image.data
    if isinstance(data, np.ndarray):
        return {"shape": list(data.shape), "pixels": np.ascontiguousarray(data).tobytes()}
    return data


def _image_data(stored: Any) -> Any:
    if isinstance(stored, dict):
        return np.frombuffer(stored["pixels"], np.uint8).reshape(stored["shape"])
    return stored
