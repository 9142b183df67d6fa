"""Entries of foreign files: a record, several records, or a rejection with its reason."""

import re
from dataclasses import dataclass, field

from mm1_jax.batch import Record


@dataclass(frozen=True)
class Rejected:
    """An entry of a foreign file that cannot become a record: its id and the reason."""

    id: str
    reason: str


@dataclass(frozen=True)
class Documents:
    """An entry of a foreign file that yields any number of records; having none is not an error.

    Attributes:
        counts: Added to the counts of the manifest.
    """

    records: tuple[Record, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)


Entry = Record | Rejected | Documents
# A hidden file in an archive, such as the `._name` that macOS adds for each file.
HIDDEN = Documents(counts={"hidden_files": 1})


def documents_of(entry: Entry) -> Documents:
    """Returns the records and the additional counts of an entry."""
    if isinstance(entry, Documents):
        return entry
    return Documents() if isinstance(entry, Rejected) else Documents((entry,))


def reason_class(reason: str) -> str:
    """Returns the class of a reason: its text without quoted values, numbers and advice.

    image 'a.jpg' is not in b.tar: cut short          ->  image ... is not in b.tar: cut short
    3 texts beside 2 images; 4 rows are not read      ->  N texts beside N images
    """
    kind = re.sub(r"""'[^']*'|"[^"]*\"""", "...", reason).partition(";")[0]
    return re.sub(r"0x[0-9a-f]+|\d+", "N", kind).strip()[:120]
