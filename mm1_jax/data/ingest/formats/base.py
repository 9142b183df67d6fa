"""A format: how foreign files are cut into units of work, and the records of a unit in order."""

import abc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from mm1_jax.data.readers.entries import Entry
from mm1_jax.data.readers.source_files import Unit
from mm1_jax.data.record_files import Kind


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
