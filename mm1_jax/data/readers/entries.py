"""An entry of a foreign file: a record, several of them, or the reason why it is none."""

import re
from dataclasses import dataclass, field

from mm1_jax.batch import Record


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
    """Returns the records of an entry, and what is counted of it beside them."""
    if isinstance(entry, Documents):
        return entry
    return Documents() if isinstance(entry, Rejected) else Documents((entry,))


def reason_class(reason: str) -> str:
    """Returns what a reason has in common with others of its kind, without advice.

    image 'a.jpg' is not in b.tar: cut short          ->  image ... is not in b.tar: cut short
    3 texts beside 2 images; 4 rows are not read      ->  N texts beside N images
    """
    kind = re.sub(r"""'[^']*'|"[^"]*\"""", "...", reason).partition(";")[0]
    return re.sub(r"0x[0-9a-f]+|\d+", "N", kind).strip()[:120]
