"""Records on disk, as training reads them: ArrayRecord shards of msgpack maps, and a manifest.

    DIR/manifest.json                    kind, licence, and for each shard records, bytes, checksum
    DIR/records-00000-00.array_record    shards; their order in the manifest numbers the records

What a record holds, by kind (`Kind`); every record has an `id` besides:

    captions       image: bytes, captions: [{text, kind}]; url, where it is known
    interleaved    texts, images: lists of equal length, one of the two None at each place; urls
    text           text
    conversations  images: [bytes], turns: [{role, text}]; `<image>` in a text is the next image
    rows           the examples of a row of a snapshot (`snapshot.py`), without an `id`

Every record is a chunk of its own (`group_size:1`): a reader of one reads no other.
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
_VERSION = 1

# Records lie in no order that a read-ahead could guess, and pools of threads do not survive a fork.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_WRITER_OPTIONS = "group_size:1"
# JSON can hold halves of surrogate pairs, which UTF-8 proper has no bytes for.
_UNICODE_ERRORS = "surrogatepass"


class Kind(enum.Enum):
    """What the records of a folder are, and so what they hold."""

    CAPTIONS = "captions"
    INTERLEAVED = "interleaved"
    TEXT = "text"
    CONVERSATIONS = "conversations"
    ROWS = "rows"


class BadRecord(ValueError):
    """A record that cannot become a document; the message is the reason."""


def encode_record(record: Record) -> bytes:
    """The record as a msgpack map; values are strings, bytes, numbers, None, lists and maps."""
    data = msgpack.packb(dict(record), unicode_errors=_UNICODE_ERRORS)
    assert isinstance(data, bytes)
    return data


def decode_record(data: bytes) -> Record:
    """Undoes `encode_record`; raises BadRecord for anything that it did not make."""
    try:
        record = msgpack.unpackb(data, unicode_errors=_UNICODE_ERRORS)
    except Exception as error:  # msgpack has half a dozen of them, without a common base.
        raise BadRecord(f"not a record: {type(error).__name__}: {error}") from error
    if not isinstance(record, dict):
        raise BadRecord(f"not a record: a {type(record).__name__}, expected a map")
    return record


@dataclass(frozen=True)
class Shard:
    """A file of records: its name in the folder, and what tells an edited file."""

    name: str
    num_records: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a folder of records holds.

    Attributes:
        license: As the user named it; "unknown" where nobody did.
        counts: Records, images, characters and whatever else was counted on the way.
        made_from: What the records were converted from, for a reader and for a later conversion.
    """

    kind: Kind
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
        """Raises ValueError where there is none, or one of another form."""
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if (version := content.pop("version")) != _VERSION:
                raise ValueError(f"version {version}, expected {_VERSION}")
            shards = tuple(Shard(**shard) for shard in content.pop("shards"))
            return cls(kind=Kind(content.pop("kind")), shards=shards, **content)
        except FileNotFoundError as error:
            raise ValueError(
                f"{folder} holds no records: {MANIFEST} is missing. "
                "Make them with tools/convert_records.py."
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            raise ValueError(
                f"{path} is not a manifest ({error}); convert the records again"
            ) from error


class ShardWriter:
    """Writes a shard; it has its name only once it is complete.

    with ShardWriter(folder, "records-00000-00.array_record") as writer:
        writer.write(record)
    manifest = Manifest(kind, (writer.shard,))
    """

    def __init__(self, folder: Path, name: str):
        self._path = folder / name
        self._partial = self._path.with_name(name + ".partial")
        self._writer = ArrayRecordWriter(str(self._partial), _WRITER_OPTIONS)
        self.num_records = 0
        # Of the records, before compression.
        self.num_bytes = 0

    def write(self, record: Record) -> None:
        """Raises OSError where the disk takes no more."""
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
        # All that the library raises, whatever failed.
        except RuntimeError as error:
            self._partial.unlink(missing_ok=True)
            raise OSError(f"{self._path}: cannot be written: {error}") from error

    @property
    def shard(self) -> Shard:
        """What the manifest says of it, once it is complete."""
        return self._shard


class RecordFiles:
    """The records of a folder by number. Pickled without open files; each process opens its own."""

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
        """Raises BadRecord where the file is damaged."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        number = bisect.bisect_right(self._starts, index) - 1
        try:
            if number not in self._readers:
                path = self.folder / self.manifest.shards[number].name
                self._readers[number] = ArrayRecordReader(str(path), _READER_OPTIONS)
            (data,) = self._readers[number].read([index - self._starts[number]])
        # What the reader raises for checksums, bounds and the disk alike.
        except RuntimeError as error:
            name = self.manifest.shards[number].name
            raise BadRecord(f"{name}: {error}") from error
        return decode_record(data)

    def fingerprint(self) -> str:
        """A digest of the content, wherever the folder lies."""
        digest = hashlib.sha256()
        for shard in self.manifest.shards:
            digest.update(f"{shard.sha256} {shard.num_records}\n".encode())
        return f"records={len(self)} sha256={digest.hexdigest()[:16]}"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": {}}


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path) -> Iterable[str]:
    """Names of the shards whose content is not what the manifest says."""
    for shard in Manifest.read(folder).shards:
        path = folder / shard.name
        if not path.is_file() or file_digest(path) != shard.sha256:
            yield shard.name
