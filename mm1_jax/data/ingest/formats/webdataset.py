"""Tar shards of WebDataset, as img2dataset writes them: `KEY.jpg`, `KEY.txt` and `KEY.json`."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mm1_jax.batch import Record
from mm1_jax.data.ingest.formats.base import Documents, Entry, Format, Rejected, Unit
from mm1_jax.data.ingest.formats.records import captions_record, records_of
from mm1_jax.data.readers.compressed import decode_text
from mm1_jax.data.readers.json_files import as_object, parse_json
from mm1_jax.data.readers.source_files import entry_id, source_files
from mm1_jax.data.readers.tar import Member, members, read_member
from mm1_jax.data.record_files import BadRecord, Kind

IMAGES = ("jpg", "jpeg", "png", "webp")
# WebDataset's rule: the key ends at the first dot behind the folders.
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)


class _Sample(NamedTuple):
    """The members of one key, by extension."""

    key: str
    members: dict[str, Member]


class Webdataset(Format):
    """Captions from members that stand together and share a key; one shard is one unit.

    The caption is the `.txt` of a sample, or without one `caption` of its `.json`, which may give
    the `url` as well. Members of other extensions belong to the sample and are not read, nor is the
    Parquet beside a shard, which lists the downloads that failed too.
    """

    name = "webdataset"
    kind = Kind.CAPTIONS

    def __init__(self, *, caption_kind: str = "caption"):
        self._caption_kind = caption_kind

    def units(self, source: Path) -> list[Unit]:
        expected = "tar shards of WebDataset, *.tar"
        files = source_files(source, (".tar",), expected, self.follow_links)
        return [Unit(path) for path in files]

    def read(self, unit: Unit) -> Iterator[Entry]:
        try:
            with unit.path.open("rb") as file:
                yield from records_of(
                    _samples(file, unit.path),
                    lambda entry, sample: self._record(file, entry, sample),
                )
        except OSError as error:
            yield Rejected(entry_id(unit.path), f"it cannot be read: {error.strerror}")

    def _record(self, file: io.BufferedIOBase, entry: str, sample: _Sample) -> Record:
        images = [member for name in IMAGES if (member := sample.members.get(name))]
        if len(images) != 1:
            raise BadRecord(f"{len(images)} images, expected one" if images else "no image")
        text, about = sample.members.get("txt"), {}
        if "json" in sample.members:
            try:
                about = as_object(parse_json(read_member(file, sample.members["json"])))
            except BadRecord:
                # It is needed only where there is no other caption.
                if text is None:
                    raise
        caption = decode_text(read_member(file, text)) if text else about.get("caption")
        return captions_record(
            entry,
            read_member(file, images[0]),
            [(caption, self._caption_kind)],
            url=about.get("url"),
            source_id=sample.key,
        )


def sample_name(name: str) -> tuple[str, str] | None:
    """Key and extension of a member, by WebDataset's rule; None where it has no extension."""
    match = _NAME.fullmatch(name)
    return None if match is None else (match[1], match[2].lower())


def _samples(
    file: io.BufferedIOBase, path: Path
) -> Iterator[tuple[str, _Sample] | Rejected | Documents]:
    """The id and the members of each run of members with the same key."""
    finished, sample = set(), None
    for member in members(file, path):
        if isinstance(member, Rejected | Documents):
            yield member
            continue
        name = sample_name(member.name)
        if name is None:
            yield Rejected(entry_id(path, member.name), "a name without an extension")
            continue
        key, extension = name
        if key in finished:
            yield Rejected(entry_id(path, member.name), "its key has been there before")
            continue
        if sample is None or key != sample.key:
            if sample is not None:
                yield entry_id(path, sample.key), sample
                finished.add(sample.key)
            sample = _Sample(key, {})
        if extension in sample.members:
            yield Rejected(entry_id(path, member.name), "it comes a second time")
        else:
            sample.members[extension] = member
    if sample is not None:
        yield entry_id(path, sample.key), sample
