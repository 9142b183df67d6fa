"""The interface of a format: it divides foreign files into units, and reads their records."""

import abc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from mm1_jax.data.readers.entries import Entry
from mm1_jax.data.readers.source_files import Unit
from mm1_jax.data.record_files import RecordKind


class Format(abc.ABC):
    """Reads one layout of files. Pickled into workers, so it holds no open files.

    A reader trusts nothing: whatever an entry holds, the result is a record, `Documents`, or a
    `Rejected` with the reason. Entries are never skipped silently. A file that cannot be read
    further ends with a `Rejected` that says so. Memory is bounded by the size of an entry, not of a
    file. The number of entries of a unit must not change: a stopped conversion resumes by it.
    """

    name: ClassVar[str]
    kind: ClassVar[RecordKind]
    # If True, links to folders of files and of images are followed.
    follow_links: bool = False

    @classmethod
    def make(cls, *, follow_links: bool = False, **options: Any) -> "Format":
        """Makes a format from the options of its constructor and those that all formats have."""
        made = cls(**options)
        if follow_links:
            made.follow_links = True
        return made

    @abc.abstractmethod
    def units(self, source: Path) -> list[Unit]:
        """Returns the units of a file or folder that the user named, always in the same order.

        Raises:
            ValueError: There is nothing of this format; the message tells what was expected.
        """

    @abc.abstractmethod
    def read(self, unit: Unit) -> Iterator[Entry]:
        """Yields the entries of a unit, the same ones in the same order every time."""


def kinds_of_fields(captions: str | None) -> dict[str, str]:
    """Returns the kinds of captions by field, from the option "FIELD=KIND,FIELD=KIND,...".

    Raises:
        ValueError: A field has no kind, or occurs twice.
    """
    if captions is None:
        return {}
    pairs = [part.partition("=") for part in captions.split(",")]
    kinds = {field.strip(): kind.strip() for field, _, kind in pairs}
    if len(kinds) < len(pairs) or not all(field and kind for field, kind in kinds.items()):
        raise ValueError(
            f"--option.captions={captions}: expected FIELD=KIND,FIELD=KIND with different fields, "
            "such as caption=alt,recaption=synthetic"
        )
    return kinds
