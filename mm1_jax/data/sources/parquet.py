"""Rows of Parquet files where they lie, by number.

Parquet is read a row group at a time, of which a process keeps the last few. In the random order of
training nearly every row costs the reading of its group: with n rows in a group, n times the bytes
of the rows. With pictures of 35 kB, a core reads 1800 rows a second from groups of 10 rows, 330
from groups of 100 and 40 from groups of 1000. That suits small groups, and trying a data set out;
for the rest, `tools/convert_records.py` makes records that are read one at a time.
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
# More rows than this in a group are no rows, but a damaged number.
_MAX_ROWS = 2**31
# Parsed footers that a process keeps.
_MAX_FOOTERS = 64

Value = TypeVar("Value")


class ParquetSource(FileSource):
    """The rows of a file, or of the files below a folder in the order of their paths.

    A record is a row as it is stored, but for pictures: a struct of `bytes` and `path`, as Hugging
    Face has them, becomes the bytes, which are read from `path` beside the file where they are not
    in the row. The fingerprint is of sizes and footers and does not see what such files hold.
    """

    @config_class
    class Config(FileSource.Config):
        # The fields of a record, and the columns that they are; None: all columns as they are
        # named. Columns that are not asked for are not read.
        columns: dict[str, str] | None = None
        # What a process keeps in memory: row groups, and the most bytes that one of them may have
        # in the columns that are read, before compression.
        cached_row_groups: PositiveInt = 4
        max_row_group_bytes: PositiveInt = 2**30

    def __init__(self, cfg: Config, *, split: str):
        super().__init__(cfg, split=split)
        is_file = self.path.is_file()
        self._files = [self.path] if is_file else documents_below(self.path, (_SUFFIX,))
        if not self._files:
            raise ValueError(
                f"source.path={str(self.path)!r} holds no Parquet. Set it to a {_SUFFIX} file, or "
                "to a folder of such files."
            )
        if not is_file and (links := links_not_followed(self.path)):
            logging.warning("source.path: %s; name what they lead to", links)
        self.cache_dir = self.path.parent if is_file else self.path
        self._columns = cfg.columns
        digest = hashlib.blake2b(digest_size=8)
        groups = []
        for number, path in enumerate(self._files):
            try:
                footer, sizes = _footer(path, cfg.columns, cfg.max_row_group_bytes)
            except Exception as error:  # What pyarrow raises for damage has no common base.
                raise ValueError(f"{path}: {_reason(error)}") from error
            digest.update(footer)
            groups += [(number, part, rows) for part, rows in enumerate(sizes)]
        # Int [n, 3]: the file of each row group, its number there, and its rows.
        self._groups = np.array(groups, np.int64).reshape(-1, 3)
        self._ends = np.cumsum(self._groups[:, 2])
        self._digest = digest.hexdigest()
        num_rows = int(self._ends[-1]) if len(groups) else 0
        self._split = SplitIndices(num_rows, split, cfg.test_every)
        self._tables: _Latest[pa.Table] = _Latest(cfg.cached_row_groups)
        self._footers: _Latest[pq.FileMetaData] = _Latest(_MAX_FOOTERS)

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
        except Exception as error:  # What pyarrow raises has no common base.
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
        # That of a file of many row groups takes longer to read than one of them.
        footer = self._footers.get(file, lambda: pq.read_metadata(path))
        with _opened(path, footer) as parquet:
            # Pools of threads do not survive a fork.
            table = parquet.read_row_group(part, columns, use_threads=False)
        if table.num_rows != num_rows:
            raise BadRecord(f"{table.num_rows} rows, the footer says {num_rows}")
        return table


class _Latest(Generic[Value]):
    """The values that were used last; pickled without them."""

    def __init__(self, max_values: int):
        self._max_values = max_values
        # The one used last stands last.
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
    """What tells an edited file, and the rows of each row group; ValueError where they are odd."""
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
                    "with tools/convert_records.py, or raise the limit."
                )
            sizes.append(group.num_rows)
    with path.open("rb") as file:
        size = path.stat().st_size
        # It ends with the footer, four bytes of its length, and four letters.
        file.seek(size - 8)
        file.seek(size - 8 - int.from_bytes(file.read(4), "little"))
        return size.to_bytes(8, "little") + file.read(), sizes


def _num_bytes(group: pq.RowGroupMetaData, columns: Collection[str] | None) -> int:
    """The bytes of some columns of a row group, before compression."""
    chunks = [group.column(number) for number in range(group.num_columns)]
    return sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if columns is None or any(f"{chunk.path_in_schema}.".startswith(f"{c}.") for c in columns)
    )


def _with_bytes(value: Any, kind: pa.DataType, folder: Path) -> Any:
    """The value, with the bytes of a picture in place of every struct of bytes and a path."""
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
    # The class says something where a library chose it.
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
