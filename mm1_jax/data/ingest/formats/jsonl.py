"""JSON lines of our own layouts: records with paths of files in place of images."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm1_jax.batch import Record
from mm1_jax.data.ingest.formats.base import Format
from mm1_jax.data.readers.compressed import compressed
from mm1_jax.data.readers.entries import Documents, Entry, Rejected
from mm1_jax.data.readers.image_files import ImageFolder
from mm1_jax.data.readers.json_files import as_object, entries
from mm1_jax.data.readers.marks import END_OF_TEXT
from mm1_jax.data.readers.source_files import Unit, source_files
from mm1_jax.data.record_files import RecordKind
from mm1_jax.data.records import (
    as_list,
    captions_record,
    conversation_record,
    is_missing,
    parallel_record,
    records_of,
    text_record,
)

_EXPECTED = "JSON lines, *.jsonl, which may be in .gz, .zst or .zip"
# Fields that occur only in records of one kind.
_FIELDS = {
    RecordKind.CONVERSATIONS: {"turns"},
    RecordKind.INTERLEAVED: {"texts"},
    RecordKind.CAPTIONS: {"captions", "caption"},
    RecordKind.TEXT: {"text"},
}
_NUM_LOOKED_AT = 10
_SUFFIXES = compressed(".jsonl")


class Jsonl(Format):
    """Records of one kind, one per line; image paths start at the folder of the JSONL file.

    Captions are `{image, captions: [{kind, text}]}` or `{image, caption}`, pages `{texts, images}`,
    conversations `{images, turns: [{role, text}]}` with the optional fields of `record_files`,
    texts `{text}`. A page counts unavailable images in `missing_images`.

    Args:
        kind: The kind of the records; files of other kinds are skipped. By default it is inferred
            from the fields of the first lines, and must be the same in all files.
    """

    name = "jsonl"

    def __init__(self, *, kind: RecordKind | str | None = None):
        kinds = [one.value for one in RecordKind]
        if isinstance(kind, str) and kind not in kinds:
            raise ValueError(f"kind={kind!r}; expected one of {', '.join(kinds)}")
        self._kind = None if kind is None else RecordKind(kind)

    @property
    def kind(self) -> RecordKind:
        """The kind of the records, given or inferred by `units`."""
        if self._kind is None:
            raise ValueError("the kind of JSON lines is unknown before `units` is called; set kind")
        return self._kind

    def units(self, source: Path) -> list[Unit]:
        found = source_files(source, _SUFFIXES, _EXPECTED, self.follow_links)
        files = {path: _kind(path) for path in found}
        kinds = {kind: path for path, kind in files.items() if kind is not None}
        if self._kind is None:
            if not kinds:
                fields = sorted(field for fields in _FIELDS.values() for field in fields)
                raise ValueError(
                    f"{source}: expected JSON lines with one of the fields {', '.join(fields)}"
                )
            if len(kinds) > 1:
                there = ", ".join(f"{kind.value} in {path.name}" for kind, path in kinds.items())
                raise ValueError(f"{source}: {there}; name one of the files, or set kind")
            (self._kind,) = kinds
        units = [Unit(path) for path, kind in files.items() if kind in (None, self._kind)]
        if not units:
            raise ValueError(f"{source}: none of the files holds {self._kind.value}")
        return units

    def read(self, unit: Unit) -> Iterator[Entry]:
        images = ImageFolder(unit.path.parent, self.follow_links)
        # If the kind is unknown, any one will do: all lines become Rejected.
        make = _MAKE[self._kind or _kind(unit.path) or RecordKind.TEXT]
        return records_of(
            entries(unit.path), lambda entry, value: make(entry, as_object(value), images)
        )


def _kind(path: Path) -> RecordKind | None:
    """Infers the kind from the fields of the first lines."""
    for item in itertools.islice(entries(path), _NUM_LOOKED_AT):
        if not isinstance(item, Rejected) and isinstance(item[1], dict):
            for kind, fields in _FIELDS.items():
                if fields & item[1].keys():
                    return kind
    return None


def _captions(entry: str, line: dict[str, Any], images: ImageFolder) -> Record:
    if "captions" in line:
        listed = as_list(line["captions"], "captions")
        captions = [as_object(caption) for caption in listed if not is_missing(caption)]
        of_kind = [(caption.get("text"), caption.get("kind")) for caption in captions]
    else:
        of_kind = [(line.get("caption"), "caption")]
    image = images.read(line.get("image"))
    return captions_record(entry, image, of_kind, url=line.get("url"), source_id=line.get("id"))


def _page(entry: str, line: dict[str, Any], images: ImageFolder) -> Record | Documents:
    urls = line.get("urls")
    urls = urls if isinstance(urls, list) else []
    lists = line.get("texts"), line.get("images")
    return parallel_record(entry, *lists, images.read, urls, source_id=line.get("id"))


def _conversation(entry: str, line: dict[str, Any], images: ImageFolder) -> Record | Documents:
    listed = as_list(line.get("turns"), "turns")
    turns = [as_object(turn) for turn in listed if not is_missing(turn)]
    of_role = [(turn.get("role"), turn.get("text"), turn.get("loss")) for turn in turns]
    read = [images.read(name) for name in as_list(line.get("images", []), "images")]
    boxes = [as_object(box) for box in as_list(line.get("boxes", []), "boxes")]
    extras = {"source_id": line.get("id"), "source": line.get("source")}
    return conversation_record(entry, read, of_role, boxes=boxes, **extras)


def _text(entry: str, line: dict[str, Any], images: ImageFolder) -> Record | Documents:
    return text_record(entry, line.get("text"), END_OF_TEXT, source_id=line.get("id"))


_MAKE = {
    RecordKind.CAPTIONS: _captions,
    RecordKind.INTERLEAVED: _page,
    RecordKind.CONVERSATIONS: _conversation,
    RecordKind.TEXT: _text,
}
