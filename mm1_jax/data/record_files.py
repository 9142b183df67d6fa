"""Records on disk, as training reads them: ArrayRecord shards of msgpack maps, and a manifest.

    DIR/manifest.json                    kind, license, and for each shard records, bytes, checksum
    DIR/records-00000-00.array_record    shards; their order in the manifest numbers the records

Fields of a record by kind (`RecordKind`). Every record but those of `rows` also has an `id`:

    captions       image: bytes, captions: [{text, kind}]; url, where known
    interleaved    texts, images: lists of equal length, one of the two None at each place; urls
    text           text
    conversations  images: [bytes], turns: [{role, text}], and the optional fields below
    rows           the examples of a row of a snapshot (`snapshot.py`)

Roles of turns are system (at most once, first), user and assistant, which alternate. `<image>` in a
text is the next image; if no text has one, all images precede the first turn; if there are no
images, it is text. Optional fields:

    loss           of a turn: false for an answer that is only read
    source         the name of the dataset
    boxes          [{image, box: [left, top, right, bottom]} or {image, point: [x, y]}]

`image` is the place in `images`, and coordinates are fractions (0..1) of the upright image. In a
record with boxes, `<box>` and `<point>` in a text stand for the next one; in others they are text.

Every record is a chunk of its own (`group_size:1`), so reading one reads no other.
"""

import bisect
import contextlib
import enum
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import msgpack
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from mm1_jax.batch import Record
from mm1_jax.storage import write_whole

MANIFEST = "manifest.json"
# Marks in the texts of conversations, each of which stands for the next image, box or point.
IMAGE, BOX, POINT = "<image>", "<box>", "<point>"
_VERSION = 1

# Access is random, so read-ahead would be wasted; thread pools do not survive a fork.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_WRITER_OPTIONS = "group_size:1"
# JSON can hold lone surrogates, which strict UTF-8 cannot encode.
_UNICODE_ERRORS = "surrogatepass"


class RecordKind(enum.Enum):
    """The kind of the records in a folder, which determines their fields."""

    CAPTIONS = "captions"
    INTERLEAVED = "interleaved"
    TEXT = "text"
    CONVERSATIONS = "conversations"
    ROWS = "rows"


class BadRecord(ValueError):
    """A record that cannot become a document; the message is the reason."""


def encode_record(record: Record) -> bytes:
    """Encodes a record of strings, bytes, numbers, None, lists and maps as a msgpack map."""
    data = msgpack.packb(dict(record), unicode_errors=_UNICODE_ERRORS)
    assert isinstance(data, bytes)
    return data


def decode_record(data: bytes) -> Record:
    """Decodes the result of `encode_record`; raises BadRecord for anything else."""
    try:
        record = msgpack.unpackb(data, unicode_errors=_UNICODE_ERRORS)
    except Exception as error:  # The exceptions of msgpack share no base class.
        raise BadRecord(f"not a record: {type(error).__name__}: {error}") from error
    if not isinstance(record, dict):
        raise BadRecord(f"not a record: a {type(record).__name__}, expected a map")
    return record


@dataclass(frozen=True)
class Shard:
    """A file of records: its name in the folder, and its size and checksum, which reveal edits."""

    name: str
    num_records: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of a folder of records.

    Attributes:
        license: As the user named it; defaults to "unknown".
        counts: Records, images, characters and whatever else the conversion counted.
        made_from: Settings and inputs of the conversion, to compare with those of a later one.
    """

    kind: RecordKind
    shards: tuple[Shard, ...]
    license: str = "unknown"
    counts: dict[str, int] = field(default_factory=dict)
    made_from: dict[str, Any] = field(default_factory=dict)

    @property
    def num_records(self) -> int:
        return sum(shard.num_records for shard in self.shards)

    def write(self, folder: Path) -> None:
        content = asdict(self) | {"version": _VERSION, "kind": self.kind.value}
        write_whole(folder / MANIFEST, json.dumps(content, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Reads the manifest of a folder; raises ValueError if it is missing or malformed."""
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if (version := content.pop("version")) != _VERSION:
                raise ValueError(f"version {version}, expected {_VERSION}")
            shards = tuple(Shard(**shard) for shard in content.pop("shards"))
            return cls(kind=RecordKind(content.pop("kind")), shards=shards, **content)
        except FileNotFoundError as error:
            raise ValueError(
                f"{folder} holds no records: {MANIFEST} is missing. "
                "Make them with `python -m mm1_jax convert_records`."
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            raise ValueError(
                f"{path} is not a manifest ({error}); convert the records again"
            ) from error


class ShardWriter:
    """Writes a shard, which gets its name only once it is complete.

    with ShardWriter(folder, "records-00000-00.array_record") as writer:
        writer.write(record)
    manifest = Manifest(kind, (writer.shard,))
    """

    def __init__(self, folder: Path, name: str):
        self._path = folder / name
        self._partial = self._path.with_name(name + ".partial")
        self._writer = ArrayRecordWriter(str(self._partial), _WRITER_OPTIONS)
        self.num_records = 0
        # Size of the records before compression.
        self.num_bytes = 0

    def write(self, record: Record) -> None:
        """Appends a record; raises OSError if it cannot be written."""
        data = encode_record(record)
        with self._explained_errors():
            self._writer.write(data)
        self.num_records += 1
        self.num_bytes += len(data)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            with contextlib.suppress(RuntimeError):
                self._writer.close()
            self._partial.unlink(missing_ok=True)
            return
        with self._explained_errors():
            self._writer.close()
        self._shard = Shard(
            self._path.name,
            self.num_records,
            self._partial.stat().st_size,
            file_digest(self._partial),
        )
        self._partial.replace(self._path)

    @contextlib.contextmanager
    def _explained_errors(self) -> Iterator[None]:
        try:
            yield
        # The library raises nothing else, whatever failed.
        except RuntimeError as error:
            self._partial.unlink(missing_ok=True)
            raise OSError(f"{self._path}: cannot be written: {error}") from error

    @property
    def shard(self) -> Shard:
        """The shard's entry in the manifest, once it is complete."""
        return self._shard


class RecordFiles:
    """The records of a folder by number. Pickled without open files; each process opens them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.manifest = Manifest.read(folder)
        self._readers: dict[int, ArrayRecordReader] = {}
        self._starts = [0]
        for shard in self.manifest.shards:
            path = folder / shard.name
            size = path.stat().st_size if path.is_file() else None
            if size != shard.num_bytes:
                raise ValueError(
                    f"{path}: {MANIFEST} says {shard.num_bytes} bytes, "
                    f"found {'no file' if size is None else size}. Copy the folder again."
                )
            self._starts.append(self._starts[-1] + shard.num_records)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Record:
        """Returns a record; raises BadRecord if the file is damaged."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        number = bisect.bisect_right(self._starts, index) - 1
        try:
            if number not in self._readers:
                path = self.folder / self.manifest.shards[number].name
                self._readers[number] = ArrayRecordReader(str(path), _READER_OPTIONS)
            (data,) = self._readers[number].read([index - self._starts[number]])
        # The reader raises it for checksums, bounds and disk errors alike.
        except RuntimeError as error:
            name = self.manifest.shards[number].name
            raise BadRecord(f"{name}: {error}") from error
        return decode_record(data)

    def fingerprint(self) -> str:
        """Returns a digest of the content, independent of the folder's path."""
        digest = hashlib.sha256()
        for shard in self.manifest.shards:
            digest.update(f"{shard.sha256} {shard.num_records}\n".encode())
        return f"records={len(self)} sha256={digest.hexdigest()[:16]}"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": {}}


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path) -> Iterable[str]:
    """Yields the names of shards whose content differs from the manifest."""
    for shard in Manifest.read(folder).shards:
        path = folder / shard.name
        if not path.is_file() or file_digest(path) != shard.sha256:
            yield shard.name
