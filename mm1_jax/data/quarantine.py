"""The quarantine log: one JSON line per unusable record, in order of consumption.

A record that recurs, in a later epoch or after a restart, is written once, so a resumed run and an
uninterrupted one write the same file. Each process needs its own file.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Quarantined(NamedTuple):
    """An unusable record, the epoch in which it was read, and the reason."""

    corpus: str
    record: int
    epoch: int
    reason: str


class Quarantine:
    """Appends to the log at `path`; without a path, only remembers what it has seen."""

    def __init__(self, path: Path | None):
        self.path = path
        self._seen = {(entry.corpus, entry.record) for entry in self._read()}

    def add(self, entries: Iterable[Quarantined]):
        new = {}
        for entry in entries:
            key = (entry.corpus, entry.record)
            if key not in self._seen:
                new.setdefault(key, entry)
        self._seen |= new.keys()
        if new and self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(entry._asdict()) + "\n" for entry in new.values())

    def _read(self) -> list[Quarantined]:
        if self.path is None or not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        whole, newline, torn = text.rpartition("\n")
        if torn:
            # A process killed while writing leaves half a line.
            self.path.write_text(whole + newline, encoding="utf-8")
        return [Quarantined(**json.loads(line)) for line in whole.splitlines()]


def check_bad_fraction(
    corpus: str, *, bad: int, documents: int, least: int = 1, limit: float, example: str = ""
):
    """Raises ValueError if more than the fraction `limit` of a corpus's documents are bad.

    The fraction is taken of at least `least` documents: the first document of a million says
    nothing about the rest.

    Args:
        example: The reason why one of them is bad.
    """
    if bad > limit * max(documents, least):
        raise ValueError(
            f"{bad} of {documents} documents of corpus {corpus!r} cannot be used, more than "
            f"input.max_bad_fraction={limit:g} allows{f', such as {example}' if example else ''}. "
            "The quarantine log lists them with reasons; fix the data, or raise the limit."
        )
