"""Rows of Parquet files by number, read in place.

Parquet is read one row group at a time, and a process caches the last few groups. In the random
order of training, nearly every row costs reading its whole group: n times the bytes of the row for
groups of n rows. With images of 35 kB, a core reads 1800 rows per second from groups of 10 rows,
330 from groups of 100, and 40 from groups of 1000. This suits small groups, and trying out a
dataset. In other cases, `python -m mm1_jax convert_records` makes records that are read one at a
time.
"""

import hashlib
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging

from mm1_jax.batch import Record
from mm1_jax.config import config_class
from mm1_jax.data.readers.image_files import ImageFolder, stored_image
from mm1_jax.data.readers.parquet import missing_column
from mm1_jax.data.readers.source_files import documents_below, links_not_followed
from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.sources.base import FileSource, SplitIndices
from mm1_jax.field_types import PositiveInt

_SUFFIX = ".parquet"
# A larger row count of a group comes from a damaged footer.
_MAX_ROWS = 2**31
# Parsed footers that a process caches.
_MAX_FOOTERS = 64

Value = TypeVar("Value")


class ParquetSource(FileSource):
    """The rows of a file, or of the files below a folder in the order of their paths.

    A record is a row as it is stored, except for images: Hugging Face's struct of `bytes` and
    `path` becomes the bytes, which are read from `path` beside the Parquet file if the row lacks
    them. The fingerprint covers sizes and footers, but not the content of such image files.
    """

    @config_class
    class Config(FileSource.Config):
        # Fields of a record and their columns; None means all columns under their own names. Other
        # columns are not read.
        columns: dict[str, str] | None = None
        # Row groups that a process keeps in memory, and the largest size of one: the bytes of the
        # columns that are read, before compression.
        cached_row_groups: PositiveInt = 4
        max_row_group_bytes: PositiveInt = 2**30

    def __init__(self, cfg: Config, *, split: str):
        super().__init__(cfg, split=split)
        is_file = self.path.is_file()
        self._files = [self.path] if is_file else documents_below(self.path, (_SUFFIX,))
        if not self._files:
            raise ValueError(
                f"source.path={str(self.path)!r} holds no Parquet files. Set it to a {_SUFFIX} "
                "file, or to a folder of such files."
            )
        if not is_file and (links := links_not_followed(self.path)):
            logging.warning("source.path: %s; name their targets instead", links)
        self.cache_dir = self.path.parent if is_file else self.path
        self._columns = cfg.columns
        digest = hashlib.blake2b(digest_size=8)
        groups = []
        for number, path in enumerate(self._files):
            try:
                footer, sizes = _footer(path, cfg.columns, cfg.max_row_group_bytes)
            except Exception as error:  # The exceptions of pyarrow for damage share no base class.
                raise ValueError(f"{path}: {_reason(error)}") from error
            digest.update(footer)
            groups += [(number, part, rows) for part, rows in enumerate(sizes)]
        # Int [n, 3]: the file of each row group, its number there, and its number of rows.
        self._groups = np.array(groups, np.int64).reshape(-1, 3)
        self._ends = np.cumsum(self._groups[:, 2])
        self._digest = digest.hexdigest()
        num_rows = int(self._ends[-1]) if len(groups) else 0
        self._split = SplitIndices(num_rows, split, cfg.test_every)
        self._tables: _LruCache[pa.Table] = _LruCache(cfg.cached_row_groups)
        self._footers: _LruCache[pq.FileMetaData] = _LruCache(_MAX_FOOTERS)

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> Record:
        row = self._split[index]
        group = int(np.searchsorted(self._ends, row, side="right"))
        file, part, num_rows = self._groups[group].tolist()
        try:
            table = self._tables.get(group, lambda: self._read(group))
            place = row - int(self._ends[group]) + num_rows
            record = {
                field.name: _with_bytes(column[place].as_py(), field.type, self._files[file].parent)
                for field, column in zip(table.schema, table.columns, strict=True)
            }
        except Exception as error:  # The exceptions of pyarrow share no base class.
            raise BadRecord(
                f"{self._files[file].name}, row {row} (row group {part}): {_reason(error)}"
            ) from error
        if self._columns is None:
            return record
        return {name: record[column] for name, column in self._columns.items()}

    def fingerprint(self) -> str:
        cfg = self._config
        total = int(self._ends[-1]) if len(self._ends) else 0
        columns = "all" if cfg.columns is None else sorted(cfg.columns.items())
        return (
            f"rows={total} digest={self._digest} columns={columns} split={self.split} "
            f"test_every={cfg.test_every}"
        )

    def _read(self, group: int) -> pa.Table:
        file, part, num_rows = self._groups[group].tolist()
        columns = None if self._columns is None else sorted(set(self._columns.values()))
        path = self._files[file]
        # The footer of a file of many row groups takes longer to read than one of the groups.
        footer = self._footers.get(file, lambda: pq.read_metadata(path))
        with _opened(path, footer) as parquet:
            # Thread pools do not survive a fork.
            table = parquet.read_row_group(part, columns, use_threads=False)
        if table.num_rows != num_rows:
            raise BadRecord(f"{table.num_rows} rows, the footer says {num_rows}")
        return table


class _LruCache(Generic[Value]):
    """A cache of the most recently used values; pickled empty."""

    def __init__(self, max_values: int):
        self._max_values = max_values
        # In order of use, the most recent last.
        self._values: dict[int, Value] = {}
        self._lock = threading.Lock()

    def get(self, key: int, make: Callable[[], Value]) -> Value:
        # Threads that want the same value wait for the one that makes it.
        with self._lock:
            value = self._values.pop(key) if key in self._values else make()
            self._values[key] = value
            if len(self._values) > self._max_values:
                del self._values[next(iter(self._values))]
            return value

    def __getstate__(self) -> dict[str, int]:
        return {"max_values": self._max_values}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(**state)


def _opened(path: Path, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
    return pq.ParquetFile(path, metadata=footer, pre_buffer=False, page_checksum_verification=True)


def _footer(
    path: Path, columns: dict[str, str] | None, max_group_bytes: int
) -> tuple[bytes, list[int]]:
    """Returns bytes that change when the file is edited, and the row count of each row group.

    Raises:
        ValueError: A column is missing, or a row group has an invalid row count or is too large.
    """
    with _opened(path) as parquet:
        metadata, names = parquet.metadata, parquet.schema_arrow.names
        for column in () if columns is None else columns.values():
            if column not in names:
                raise missing_column((column,), parquet.schema_arrow)
        sizes = []
        for part in range(metadata.num_row_groups):
            group = metadata.row_group(part)
            if not 0 <= group.num_rows < _MAX_ROWS:
                raise ValueError(f"row group {part}: {group.num_rows} rows")
            num_bytes = _num_bytes(group, None if columns is None else columns.values())
            if not 0 <= num_bytes <= max_group_bytes:
                raise ValueError(
                    f"row group {part} has {num_bytes} bytes, more than source.max_row_group_bytes="
                    f"{max_group_bytes}. A row is read with its whole group: convert the files "
                    "with `python -m mm1_jax convert_records`, or raise the limit."
                )
            sizes.append(group.num_rows)
    with path.open("rb") as file:
        size = path.stat().st_size
        # The file ends with the footer, its length in four bytes, and four magic bytes.
        file.seek(size - 8)
        file.seek(size - 8 - int.from_bytes(file.read(4), "little"))
        return size.to_bytes(8, "little") + file.read(), sizes


def _num_bytes(group: pq.RowGroupMetaData, columns: Collection[str] | None) -> int:
    """Returns the size in bytes of some columns of a row group, before compression."""
    chunks = [group.column(number) for number in range(group.num_columns)]
    return sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if columns is None or any(f"{chunk.path_in_schema}.".startswith(f"{c}.") for c in columns)
    )


def _with_bytes(value: Any, kind: pa.DataType, folder: Path) -> Any:
    """Replaces each image struct (`bytes`, `path`) in a value by the bytes of the image."""
    if value is None:
        return None
    if pa.types.is_struct(kind):
        names = {kind.field(number).name for number in range(kind.num_fields)}
        is_image = "bytes" in names and names <= {"bytes", "path"}
        return stored_image(value, ImageFolder(folder)) if is_image else value
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [_with_bytes(each, kind.value_type, folder) for each in value]
    return value


def _reason(error: Exception) -> str:
    # The class is informative only if a library raised the error.
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
