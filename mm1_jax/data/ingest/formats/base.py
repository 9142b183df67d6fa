"""A format: how foreign files are cut into units of work, and the records of a unit in order."""

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mm1_jax.batch import Record
from mm1_jax.data.record_files import Kind


@dataclass(frozen=True)
class Unit:
    """What one process reads from start to end: a file, or a part of it that it can seek to.

    Attributes:
        path: The file.
        part: Which part of the file, for formats whose files have parts (row groups of Parquet).
    """

    path: Path
    part: int = 0


@dataclass(frozen=True)
class Rejected:
    """An entry of a foreign file that is no record: which one, and why."""

    id: str
    reason: str


class Format(abc.ABC):
    """Reads one layout of files. Pickled into workers, so it holds no open files.

    A reader trusts nothing: whatever an entry holds, the result is a record or a `Rejected` with
    the reason. Entries are never passed over in silence. A file of which nothing more can be read
    ends with a `Rejected` that says so. Memory is bounded by an entry, not by a file.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]

    @abc.abstractmethod
    def units(self, source: Path) -> list[Unit]:
        """The units of a file or folder that the user named, always in the same order.

        Raises:
            ValueError: There is nothing of this format; the message says what was expected.
        """

    @abc.abstractmethod
    def read(self, unit: Unit) -> Iterator[Record | Rejected]:
        """The records of a unit, the same ones in the same order every time."""
