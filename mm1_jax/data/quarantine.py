"""The log of records that could not be used: one JSON line each, in order of consumption.

A record that is met again, in a later epoch or after a restart, is not written twice, so the file
of a run that was stopped and resumed is that of a run that was not. Each process needs a file of
its own.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Quarantined(NamedTuple):
    """A record that could not be used, the epoch in which it came, and why."""

    corpus: str
    record: int
    epoch: int
    reason: str


class Quarantine:
    """Appends to the log at `path`; with no path, only remembers what it has seen."""

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
            # A process that was killed while it wrote leaves half a line.
            self.path.write_text(whole + newline, encoding="utf-8")
        return [Quarantined(**json.loads(line)) for line in whole.splitlines()]


def check_bad_fraction(
    corpus: str, *, bad: int, documents: int, least: int = 1, limit: float, example: str = ""
):
    """Stops where more than the fraction `limit` of a corpus's documents are bad.

    While fewer than `least` documents have come, the fraction is of that many: the first document
    of a million says nothing about the rest.

    Args:
        example: Why one of them is bad.
    """
    if bad > limit * max(documents, least):
        raise ValueError(
            f"{bad} of {documents} documents of corpus {corpus!r} cannot be used, more than "
            f"input.max_bad_fraction={limit:g} allows{f', such as {example}' if example else ''}. "
            "The quarantine log says which and why; mend the data, or raise the limit."
        )
