"""The log of a conversion: a file for each part of a unit, and their totals.

DIR/progress/00012-01.json    result of part 1 of unit 12, beside its shard of records
DIR/quarantine.jsonl          rejected entries: id, unit, reason
DIR/overlap.jsonl             images that are in a benchmark, if a filter looks for them
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mm1_jax.data.ingest.runners import NumberedUnits
from mm1_jax.data.readers.entries import reason_class
from mm1_jax.data.readers.source_files import Unit
from mm1_jax.data.record_files import Shard
from mm1_jax.storage import write_whole

PROGRESS = "progress"
QUARANTINE = "quarantine.jsonl"
OVERLAP = "overlap.jsonl"

# The rejected fraction is taken of at least this many entries, as it says little about fewer.
_LEAST_ENTRIES = 1000
# Limits the size of the manifest: reasons that quote data may each be a class of their own.
_MAX_REASONS = 50
# Lines of the quarantine that are read to find an example.
_MAX_INSPECTED = 100_000
# Counts of every manifest, in this order, before the others.
_COUNTS = ("entries", "rejected", "records", "images", "image_bytes", "characters")


@dataclass(frozen=True)
class ConvertedPart:
    """The result of a run of entries of a unit.

    Attributes:
        num_entries: The number of entries from the reader; they follow those of the previous part.
        is_last: True if the unit ends with them.
        shard: The file of their records; None if there are no records.
        rejected: Pairs of an id and a reason.
        overlaps: As the filters report them.
    """

    num_entries: int
    is_last: bool
    shard: Shard | None
    counts: dict[str, int]
    rejected: list[list[str]]
    overlaps: list[dict[str, Any]]

    def write(self, folder: Path, number: int, part: int) -> None:
        """Writes the result, which marks the part as done."""
        write_whole(_path(folder, number, part), json.dumps(asdict(self)))


def finished_parts(folder: Path, number: int) -> list[ConvertedPart]:
    """Returns the finished parts of a unit."""
    parts: list[ConvertedPart] = []
    while (path := _path(folder, number, len(parts))).exists():
        content = json.loads(path.read_bytes())
        shard = content.pop("shard")
        parts.append(ConvertedPart(shard=None if shard is None else Shard(**shard), **content))
    return parts


def part_name(number: int, part: int) -> str:
    return f"{number:05d}-{part:02d}"


def _path(folder: Path, number: int, part: int) -> Path:
    return folder / PROGRESS / f"{part_name(number, part)}.json"


class Log:
    """The finished parts of all units, in order; `units_left` is as of the log's creation."""

    def __init__(self, folder: Path, units: NumberedUnits, max_bad_fraction: float):
        self._folder = folder
        self._units = units
        self._max_bad_fraction = max_bad_fraction
        self.units_left: list[tuple[int, Unit]] = []
        self._entries = self._rejected = 0
        for number, unit in units:
            parts = finished_parts(folder, number)
            if not (parts and parts[-1].is_last):
                self.units_left.append((number, unit))
            self._entries += sum(part.counts.get("entries", 0) for part in parts)
            self._rejected += sum(len(part.rejected) for part in parts)

    def check(self, new_entries: int = 0, new_rejected: int = 0) -> None:
        """Raises ValueError if too many entries were rejected, counting the new ones."""
        entries, rejected = self._entries + new_entries, self._rejected + new_rejected
        if rejected > self._max_bad_fraction * max(entries, _LEAST_ENTRIES):
            self.write_lines()
            raise ValueError(
                f"{rejected} of {entries} entries were rejected, more than max_bad_fraction="
                f"{self._max_bad_fraction:g} allows: {self._reasons()}. The same command with a "
                "higher limit resumes."
            )

    def shards(self) -> tuple[Shard, ...]:
        """Returns all shards; raises ValueError if there are no records."""
        shards = tuple(part.shard for _, part in self._parts() if part.shard is not None)
        if not shards:
            self.write_lines()
            counts = self.counts()
            dropped = {name: n for name, n in counts.items() if name.endswith(".records")}
            hidden = counts.get("hidden_files")
            raise ValueError(
                f"none of {counts['entries']} entries became a record. "
                f"Rejected: {self._reasons() or 'none'}. "
                f"Dropped by filters: {_counts_text(dropped.items()) or 'none'}."
                + (f" Hidden files: {hidden}." if hidden else "")
            )
        return shards

    def counts(self) -> dict[str, int]:
        """Returns the total counts of all parts."""
        counts: Counter[str] = Counter()
        for _, part in self._parts():
            counts.update(part.counts)
        for start in ("rejected.", "missing_images."):
            reasons = _by_count({n: c for n, c in counts.items() if n.startswith(start)})
            for name, count in reasons[_MAX_REASONS:]:
                del counts[name]
                counts[f"{start}other"] += count
        rest = sorted(counts.keys() - set(_COUNTS))
        return {name: counts[name] for name in (*_COUNTS, *rest)}

    def write_lines(self) -> None:
        """Writes the logs of rejected entries and of overlaps; empty logs are left out."""
        _write_lines(
            self._folder / QUARANTINE,
            (
                {"id": id, "unit": _unit_text(unit), "reason": reason}
                for unit, part in self._parts()
                for id, reason in part.rejected
            ),
        )
        _write_lines(
            self._folder / OVERLAP,
            (
                overlap | {"unit": _unit_text(unit)}
                for unit, part in self._parts()
                for overlap in part.overlaps
            ),
        )

    def _parts(self) -> Iterator[tuple[Unit, ConvertedPart]]:
        for number, unit in self._units:
            for part in finished_parts(self._folder, number):
                yield unit, part

    def _reasons(self) -> str:
        """Describes the most common reasons, with an example and the log; "" if there are none."""
        found = reasons_of("rejected", self.counts())
        if not found:
            return ""
        lines = (line for _, part in self._parts() for line in part.rejected)
        spelled, example = _counts_text(found[:5]), _example(found[0][0], lines)
        return f"{spelled}. {example}. {self._folder / QUARANTINE} lists them"


def reasons_of(what: str, counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Returns the classes of reasons in the counts of a conversion, the most common first.

    Args:
        what: "rejected" for entries, "missing_images" for images of pages, "marks" for markers in
            texts.
    """
    start = f"{what}."
    return _by_count({n.removeprefix(start): c for n, c in counts.items() if n.startswith(start)})


def example_of(folder: Path, reason: str) -> str:
    """Describes a quarantined entry of a folder that was rejected for a class of reasons."""
    with (folder / QUARANTINE).open(encoding="utf-8") as file:
        lines = map(json.loads, itertools.islice(file, _MAX_INSPECTED))
        return _example(reason, ([line["id"], line["reason"]] for line in lines))


def _example(reason: str, rejected: Iterable[Sequence[str]]) -> str:
    first = None
    for line in rejected:
        # A conversion begun by an earlier version may have other classes.
        first = first or line
        if reason_class(line[1]) == reason:
            first = line
            break
    return "" if first is None else f"For example {first[0]}: {first[1]}"


def _write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Writes JSON lines atomically, one at a time; leaves no file if there are no lines."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
        is_empty = not file.tell()
    if is_empty:
        partial.unlink()
    else:
        partial.replace(path)


def _by_count(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda each: (-each[1], each[0]))


def _counts_text(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{count} x {name!r}" for name, count in counts)


def _unit_text(unit: Unit) -> str:
    return f"{unit.path}" + (f", part {unit.part}" if unit.part else "")
