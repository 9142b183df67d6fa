"""Rows of Parquet files, read a few at a time; a unit is a row group."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mm1_jax.data.readers.entries import Rejected
from mm1_jax.data.readers.source_files import Unit, entry_id, source_files
from mm1_jax.data.record_files import BadRecord
from mm1_jax.storage import stand_in

# Chooses the columns to read; raises BadRecord if those of the format are missing.
ChooseColumns = Callable[[pa.Schema], Sequence[str]]

_BATCH_ROWS = 16
# Read buffer of a column; without it, a whole row group is read at once.
_BUFFER_BYTES = 2**20


def row_group_units(
    source: Path, choose: ChooseColumns, expected: str, follow_links: bool
) -> list[Unit]:
    """Returns one unit per row group of all Parquet files.

    A file that cannot be opened is one unit, from which `rows` yields a Rejected.

    Raises:
        ValueError: There are no Parquet files, or none has the columns of the format.
    """
    units, problems, is_any_good = [], [], False
    for path in source_files(source, (".parquet",), expected, follow_links):
        num_groups = 1
        try:
            with _opened(path) as file:
                num_groups = file.num_row_groups
                choose(file.schema_arrow)
                is_any_good = True
        except BadRecord as error:
            problems.append(f"{path.name}: {error}")
        # The exceptions of pyarrow for damage share no base class. Reading will raise them again.
        except Exception:
            is_any_good = True
        units += [Unit(path, part) for part in range(num_groups)]
    if not is_any_good:
        raise ValueError(f"{source}: expected {expected}; {problems[0]}")
    return units


def rows(unit: Unit, choose: ChooseColumns) -> Iterator[tuple[str, dict[str, Any]] | Rejected]:
    """Yields the id and the values of each row of a row group.

    Nothing after damage in a row group can be read; the last item is then a Rejected.
    """
    row, end = 0, 0
    try:
        with _opened(unit.path) as file:
            if unit.part >= file.num_row_groups:
                raise BadRecord(f"no row group {unit.part}")
            sizes = [file.metadata.row_group(part).num_rows for part in range(unit.part + 1)]
            row, end = sum(sizes[:-1]), sum(sizes)
            batches = file.iter_batches(
                _BATCH_ROWS,
                row_groups=[unit.part],
                columns=list(choose(file.schema_arrow)),
                # Thread pools do not survive a fork.
                use_threads=False,
            )
            for batch in batches:
                columns = dict(zip(batch.schema.names, batch.columns, strict=True))
                for place in range(batch.num_rows):
                    yield _row(entry_id(unit.path, row), columns, place)
                    row += 1
            if row < end:
                raise BadRecord("the row group is cut short")
    except Exception as error:  # The exceptions of pyarrow share no base class.
        reason = str(error) if isinstance(error, BadRecord) else _reason(unit.path, error)
        left = f"; {end - row} rows of row group {unit.part} are not read" if end > row else ""
        yield Rejected(entry_id(unit.path, row), reason + left)


def _reason(path: Path, error: Exception) -> str:
    head = b""
    with contextlib.suppress(OSError), path.open("rb") as file:
        head = file.read(64)
    return stand_in(head) or f"{type(error).__name__}: {error}"


def _opened(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(
        path, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
    )


def _row(
    entry: str, columns: dict[str, pa.Array], place: int
) -> tuple[str, dict[str, Any]] | Rejected:
    try:
        return entry, {name: column[place].as_py() for name, column in columns.items()}
    except (ValueError, OverflowError, pa.ArrowException) as error:
        # Strings that are not UTF-8, times that Python cannot represent.
        return Rejected(entry, f"{type(error).__name__}: {error}")


def missing_column(names: Sequence[str], schema: pa.Schema) -> BadRecord:
    """Returns the error for a file without a column of these names; it lists those of the file."""
    there = ", ".join(map(ascii, schema.names))
    return BadRecord(f"no column {' or '.join(names)}; there are {there:.400}")
