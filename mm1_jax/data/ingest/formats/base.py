"""A format: how foreign files are cut into units of work, and the records of a unit in order."""

import abc
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

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


@dataclass(frozen=True)
class Documents:
    """An entry of a foreign file that is any number of records; without one, it is no fault.

    Attributes:
        counts: Added to those of the manifest.
    """

    records: tuple[Record, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)


Entry = Record | Rejected | Documents
# A hidden file in an archive, such as the `._name` that macOS adds for each name.
HIDDEN = Documents(counts={"hidden_files": 1})


def documents_of(entry: Entry) -> Documents:
    """The records of an entry, and what is counted of it beside them."""
    if isinstance(entry, Documents):
        return entry
    return Documents() if isinstance(entry, Rejected) else Documents((entry,))


def reason_class(reason: str) -> str:
    """What a reason has in common with others of its kind, without advice.

    image 'a.jpg' is not in b.tar: cut short          ->  image ... is not in b.tar: cut short
    3 texts beside 2 images; 4 rows are not read      ->  N texts beside N images
    """
    kind = re.sub(r"""'[^']*'|"[^"]*\"""", "...", reason).partition(";")[0]
    return re.sub(r"0x[0-9a-f]+|\d+", "N", kind).strip()[:120]


class Format(abc.ABC):
    """Reads one layout of files. Pickled into workers, so it holds no open files.

    A reader trusts nothing: whatever an entry holds, the result is a record, `Documents`, or a
    `Rejected` with the reason. Entries are never passed over in silence. A file of which nothing
    more can be read ends with a `Rejected` that says so. Memory is bounded by an entry, not by a
    file. The number of entries of a file is part of its layout: a conversion that was stopped
    resumes by it.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    # Whether links to folders of files and of pictures are followed.
    follow_links: bool = False

    @classmethod
    def make(cls, *, follow_links: bool = False, **options: Any) -> "Format":
        """A format with the options of its constructor, and those that all formats have."""
        made = cls(**options)
        if follow_links:
            made.follow_links = True
        return made

    @abc.abstractmethod
    def units(self, source: Path) -> list[Unit]:
        """The units of a file or folder that the user named, always in the same order.

        Raises:
            ValueError: There is nothing of this format; the message says what was expected.
        """

    @abc.abstractmethod
    def read(self, unit: Unit) -> Iterator[Entry]:
        """The records of a unit, the same ones in the same order every time."""
