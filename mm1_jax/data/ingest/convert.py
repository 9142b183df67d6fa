"""Foreign files -> a folder of records, unit by unit; resumes after a stop at any moment.

    DIR/records-00012-01.array_record   part 1 of the records of unit 12
    DIR/manifest.json                   written last, after the logs of `conversion_log`
    DIR/progress/                       until then: the settings, and the finished parts

A part of a unit is logged once its shard is complete: the number of entries that it covers, and
their results. After a kill, a unit resumes after the entries that its logged parts cover, and
shards that were not logged are rewritten. The end of a part depends on its entries alone, so the
folder is the same, byte for byte, however often the conversion was stopped and however many
processes it had. This holds for killed processes; data that is not yet on disk when a machine loses
power may be lost.
"""

import array
import contextlib
import fcntl
import hashlib
import io
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from mm1_jax.batch import Record
from mm1_jax.data.ingest.conversion_log import (
    PROGRESS,
    ConvertedPart,
    Log,
    finished_parts,
    part_name,
)
from mm1_jax.data.ingest.filters import Filter, FrequentImages, apply_filters
from mm1_jax.data.ingest.formats.base import Format
from mm1_jax.data.ingest.image_keys import frequent_keys
from mm1_jax.data.ingest.runners import NumberedUnits, Runner, Tally, in_this_process
from mm1_jax.data.readers.entries import Entry, Rejected, documents_of, reason_class
from mm1_jax.data.readers.marks import find_markers
from mm1_jax.data.readers.source_files import Unit, git_lfs_pointer, links_not_followed
from mm1_jax.data.record_files import IMAGE, MANIFEST, Manifest, RecordKind, ShardWriter
from mm1_jax.storage import write_whole

_SETTINGS = "conversion.json"
# A part ends after this many rejected entries, which are held in memory until then.
_MAX_REJECTED = 10_000


@dataclass(frozen=True)
class Conversion:
    """The inputs, output and settings of a conversion, which must not change until it is done.

    Attributes:
        inputs: Files and folders, as the format takes them.
        options: The options of the format, for the manifest.
        filters: In the order in which they are applied.
        max_shard_bytes: Size of the records of a shard, before compression, at which it is full.
    """

    format: Format
    inputs: tuple[Path, ...]
    output: Path
    license: str = "unknown"
    options: dict[str, Any] = field(default_factory=dict)
    filters: tuple[Filter.Config, ...] = ()
    max_shard_bytes: int = 512 * 2**20


@dataclass(frozen=True)
class Progress:
    """The progress of a pass over all units; `entries` are those read since this run began."""

    stage: str
    units: int
    num_units: int
    entries: int


def convert(
    conversion: Conversion,
    *,
    runner: Runner = in_this_process,
    max_bad_fraction: float = 0.1,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Manifest:
    """Runs what is left of a conversion, and returns the manifest.

    Args:
        max_bad_fraction: Largest fraction of rejected entries, taken of at least 1000 entries.

    Raises:
        ValueError: The folder holds something else, or too many or all entries are bad.
    """
    folder = conversion.output
    if (folder / MANIFEST).exists():
        return _finished(conversion)
    # Must precede the access to `kind`, which some formats infer from their files.
    units = _units(conversion)
    filters = _filters(conversion, conversion.format.kind)
    settings = _settings(conversion, filters)
    files = _files(units)
    with _claimed(folder, settings | {"files": files}):
        for place, each in enumerate(filters):
            if isinstance(each, FrequentImages):
                counting = ImageCounting(conversion.format, filters[:place], each, folder, place)
                each.use(counting.run(units, runner, on_progress))
        log = Log(folder, units, max_bad_fraction)
        log.check()

        def watch(tally: Tally) -> None:
            units_done = len(units) - len(log.units_left) + tally.units
            on_progress(Progress("converting", units_done, len(units), tally.entries))
            log.check(*tally.parts)

        job = UnitConversion(conversion.format, filters, folder, conversion.max_shard_bytes)
        runner(job, log.units_left, watch)
        log = Log(folder, units, max_bad_fraction)
        log.check()
        log.write_lines()
        manifest = Manifest(
            conversion.format.kind,
            log.shards(),
            conversion.license,
            counts=log.counts(),
            made_from=settings | {"files": _summary(files)},
        )
        manifest.write(folder)
        shutil.rmtree(folder / PROGRESS)
        return manifest


@dataclass(frozen=True)
class UnitConversion:
    """The job that filters the records of a unit and writes them to shards, part by part."""

    format: Format
    filters: list[Filter]
    folder: Path
    max_shard_bytes: int

    def __call__(self, number: int, unit: Unit, tally: Tally | None = None) -> None:
        tally = tally or Tally()
        with _locked_unit(self.folder, number):
            parts = finished_parts(self.folder, number)
            if not (parts and parts[-1].is_last):
                entries = _read(self.format, unit, tally)
                # Skips what the reader yields: hidden files count too, and a page that is cut once.
                for _ in itertools.islice(entries, sum(part.num_entries for part in parts)):
                    pass
                for index in itertools.count(len(parts)):
                    part = self._part(entries, part_name(number, index))
                    part.write(self.folder, number, index)
                    tally.part(part.counts.get("entries", 0), len(part.rejected))
                    if part.is_last:
                        break
        tally.unit()

    def _part(self, entries: Iterator[Entry], name: str) -> ConvertedPart:
        """Writes the shard of the next entries, until it is full or the entries end."""
        counts: Counter[str] = Counter()
        rejected: list[list[str]] = []
        overlaps: list[dict[str, Any]] = []
        writer: ShardWriter | None = None
        num_entries = 0
        is_last = True
        with contextlib.ExitStack() as stack:
            for entry in entries:
                num_entries += 1
                if isinstance(entry, Rejected):
                    rejected.append([entry.id, entry.reason])
                    reason = f"rejected.{reason_class(entry.reason)}"
                    counts.update(["entries", "rejected", reason])
                found = documents_of(entry)
                counts["entries"] += bool(found.records)
                counts.update(found.counts)
                for record in found.records:
                    left = apply_filters(self.filters, record)
                    counts.update(left.counts)
                    overlaps += left.overlaps
                    if left.record is not None:
                        if writer is None:
                            shard = ShardWriter(self.folder, f"records-{name}.array_record")
                            writer = stack.enter_context(shard)
                        writer.write(left.record)
                        counts.update(content_counts(left.record, self.format.kind))
                is_full = writer is not None and writer.num_bytes >= self.max_shard_bytes
                if is_full or len(rejected) == _MAX_REJECTED:
                    is_last = False
                    break
        return ConvertedPart(
            num_entries=num_entries,
            is_last=is_last,
            shard=None if writer is None else writer.shard,
            counts=dict(counts),
            rejected=rejected,
            overlaps=overlaps,
        )


@dataclass(frozen=True)
class ImageCounting:
    """The job that collects the image keys of a unit, in a pass before the conversion.

    Attributes:
        before: The filters before the one that needs the counts.
        place: The index of that filter among all filters.
    """

    format: Format
    before: list[Filter]
    filter: FrequentImages
    folder: Path
    place: int

    def run(
        self, units: NumberedUnits, runner: Runner, on_progress: Callable[[Progress], None]
    ) -> Path:
        """Returns the file of the keys that are too frequent, making it if needed."""
        path = self._path("frequent")
        if not path.exists():
            left = [each for each in units if not self._path(each[0]).exists()]

            def watch(tally: Tally) -> None:
                done = len(units) - len(left) + tally.units
                on_progress(Progress("counting images", done, len(units), tally.entries))

            runner(self, left, watch)
            files = [self._path(number) for number, _ in units]
            _write_array(path, frequent_keys(files, self.filter.max_documents))
        return path

    def __call__(self, number: int, unit: Unit, tally: Tally | None = None) -> None:
        tally = tally or Tally()
        path = self._path(number)
        with _locked_unit(self.folder, number):
            if not path.exists():
                keys = array.array("Q")
                for entry in _read(self.format, unit, tally):
                    for record in documents_of(entry).records:
                        left = apply_filters(self.before, record).record
                        if left is not None:
                            keys.extend(self.filter.keys(left))
                _write_array(path, np.sort(np.frombuffer(keys, np.uint64)))
        tally.unit()

    def _path(self, what: int | str) -> Path:
        name = f"{what:05d}" if isinstance(what, int) else what
        return self.folder / PROGRESS / f"images-{self.place}-{name}.npy"


def content_counts(record: Record, kind: RecordKind) -> dict[str, int]:
    """Returns the counts of a record for the manifest."""
    if kind is RecordKind.CAPTIONS:
        images, texts = [record["image"]], [caption["text"] for caption in record["captions"]]
    elif kind is RecordKind.TEXT:
        images, texts = [], [record["text"]]
    elif kind is RecordKind.CONVERSATIONS:
        images, texts = record["images"], [turn["text"] for turn in record["turns"]]
    else:
        images, texts = record["images"], record["texts"]
    images = [image for image in images if image is not None]
    texts = [text for text in texts if text is not None]
    # In conversations about images, `IMAGE` marks the place of an image.
    is_about_images = kind is RecordKind.CONVERSATIONS and bool(images)
    marks = find_markers(texts) - ({IMAGE} if is_about_images else set())
    missing = record.get("missing_images")
    return {
        "records": 1,
        "images": len(images),
        "image_bytes": sum(map(len, images)),
        "characters": sum(map(len, texts)),
        **({"missing_images": missing} if missing else {}),
        **{f"marks.{mark}": 1 for mark in marks},
    }


def _read(format: Format, unit: Unit, tally: Tally) -> Iterator[Entry]:
    try:
        for entry in format.read(unit):
            tally.entry()
            yield entry
    except OSError as error:
        raise ValueError(f"{unit.path} cannot be read: {error}") from error


def _units(conversion: Conversion) -> list[tuple[int, Unit]]:
    units: list[Unit] = []
    seen: set[tuple[Path, int]] = set()
    for source in conversion.inputs:
        if conversion.output.resolve().is_relative_to(source.resolve()):
            raise ValueError(
                f"{conversion.output} lies in the input {source}, which would hold its own output; "
                "convert into a folder outside"
            )
        for unit in _units_of(conversion.format, source):
            key = (unit.path.resolve(), unit.part)
            if key in seen:
                raise ValueError(f"{unit.path} is in the inputs twice; name it once")
            seen.add(key)
            units.append(unit)
        if not conversion.format.follow_links and (links := links_not_followed(source)):
            logging.warning("%s; --option.follow_links=true follows them", links)
    return list(enumerate(units))


def _units_of(format: Format, source: Path) -> list[Unit]:
    try:
        return format.units(source)
    except ValueError as error:
        if pointer := git_lfs_pointer(source):
            raise ValueError(f"{error}. {pointer}") from error
        raise


def _filters(conversion: Conversion, kind: RecordKind) -> list[Filter]:
    return [cfg.instantiate(kind=kind) for cfg in conversion.filters]


def _settings(conversion: Conversion, filters: list[Filter]) -> dict[str, Any]:
    """Returns everything that determines the result, except the inputs' content, in JSON types."""
    settings = {
        "format": conversion.format.name,
        "options": conversion.options,
        "inputs": [str(path.absolute()) for path in conversion.inputs],
        "license": conversion.license,
        "filters": [each.description() for each in filters],
        "max_shard_bytes": conversion.max_shard_bytes,
    }
    return json.loads(json.dumps(settings, default=str))


def _files(units: NumberedUnits) -> dict[str, list[int]]:
    """Returns the size and modification time of every file, to detect changes."""
    stats = {str(path): path.stat() for path in dict.fromkeys(unit.path for _, unit in units)}
    return {path: [stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()}


def _summary(files: dict[str, list[int]]) -> dict[str, Any]:
    return {
        "number": len(files),
        "bytes": sum(size for size, _ in files.values()),
        "sha256": hashlib.sha256(json.dumps(files).encode()).hexdigest(),
    }


def _finished(conversion: Conversion) -> Manifest:
    """Returns the manifest if the same command made it; raises ValueError otherwise."""
    manifest = Manifest.read(conversion.output)
    settings = _settings(conversion, _filters(conversion, manifest.kind))
    files = manifest.made_from.get("files")
    # The inputs of a finished conversion may be gone.
    with contextlib.suppress(ValueError, OSError):
        files = _summary(_files(_units(conversion)))
    _check_same(conversion.output, manifest.made_from, settings | {"files": files})
    # Left behind if the conversion was killed after it wrote the manifest.
    shutil.rmtree(conversion.output / PROGRESS, ignore_errors=True)
    return manifest


@contextlib.contextmanager
def _claimed(folder: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Claims the folder for this process, and for these settings until the conversion is done."""
    path = folder / PROGRESS / _SETTINGS
    if folder.is_dir() and not path.exists():
        others = sorted(
            each.name
            for each in folder.iterdir()
            if each.name != PROGRESS and not each.name.startswith(".")
        )
        if others:
            raise ValueError(
                f"{folder} holds other files ({', '.join(others[:3])}); convert into a new folder"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is converting into {folder}") from None
        if path.exists():
            _check_same(folder, json.loads(path.read_bytes()), settings)
        else:
            write_whole(path, json.dumps(settings))
        yield


def _check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    differences = [
        f"  {name}: {value}"
        for name in dict.fromkeys([*before, *now])
        for value in _differences(before.get(name), now.get(name))
    ]
    if differences:
        raise ValueError(
            f"{folder} was converted by another command, or from files that have changed since:\n"
            + "\n".join(differences)
            + "\nRepeat that command, or convert into another folder."
        )


def _differences(before: Any, now: Any) -> list[str]:
    """Describes the first few differences."""
    if before == now:
        return []
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [f"{json.dumps(before)} before, {json.dumps(now)} now"]
    names = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    lines = [
        f"{name}: {json.dumps(before.get(name))} before, {json.dumps(now.get(name))} now"
        for name in names[:5]
    ]
    return lines + [f"and {len(names) - 5} more"] * (len(names) > 5)


@contextlib.contextmanager
def _locked_unit(folder: Path, number: int) -> Iterator[None]:
    """Locks a unit: a worker may outlive a killed parent for a moment, and still be writing."""
    with (folder / PROGRESS / f"{number:05d}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_array(path: Path, values: np.ndarray) -> None:
    data = io.BytesIO()
    np.save(data, values)
    write_whole(path, data.getvalue())
