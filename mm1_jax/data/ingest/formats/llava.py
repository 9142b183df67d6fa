"""LLaVA's conversations: a JSON list, or JSON lines, of turns by human and gpt about images."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm1_jax.batch import Record
from mm1_jax.data.ingest.formats.base import Format
from mm1_jax.data.readers.compressed import compressed
from mm1_jax.data.readers.entries import Documents, Entry, Rejected
from mm1_jax.data.readers.image_files import ImageFolder, ImageTar, image_files
from mm1_jax.data.readers.json_files import as_object, entries
from mm1_jax.data.readers.source_files import Unit, source_files
from mm1_jax.data.record_files import BadRecord, RecordKind
from mm1_jax.data.records import as_list, conversation_record, is_missing, records_of

_EXPECTED = "JSON of LLaVA: a list, or lines, of objects with conversations"
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


class Llava(Format):
    """Conversations about any number of images; one JSON file is one unit.

    Args:
        images: The folder or .tar of the images by name. Defaults to the folder of the JSON file.
    """

    name = "llava"
    kind = RecordKind.CONVERSATIONS

    def __init__(self, *, images: str | Path | None = None):
        self._images = None if images is None else Path(images)

    def units(self, source: Path) -> list[Unit]:
        if self._images is not None:
            image_files(self._images)
        files = source_files(source, compressed(".json", ".jsonl"), _EXPECTED, self.follow_links)
        units = [Unit(path) for path in files if _holds_conversations(path)]
        if not units:
            raise ValueError(f"{source}: expected {_EXPECTED}")
        return units

    def read(self, unit: Unit) -> Iterator[Entry]:
        images = image_files(self._images or unit.path.parent, self.follow_links)
        return records_of(entries(unit.path), lambda entry, value: _record(entry, value, images))


def _record(entry: str, value: Any, images: ImageFolder | ImageTar) -> Record | Documents:
    value = as_object(value)
    names = value.get("image")
    names = [] if names is None else names if isinstance(names, list) else [names]
    listed = as_list(value.get("conversations"), "conversations")
    turns = [_turn(turn) for turn in listed if not is_missing(turn)]
    read = [images.read(name) for name in names]
    return conversation_record(entry, read, turns, source_id=value.get("id"))


def _turn(value: Any) -> tuple[str, Any]:
    turn = as_object(value)
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise BadRecord(f"a turn from {speaker!a:.80}; expected one of {', '.join(_ROLES)}")
    return _ROLES[speaker], turn.get("value")


def _holds_conversations(path: Path) -> bool:
    """True if one of the first entries has a conversation."""
    return any(
        not isinstance(item, Rejected) and isinstance(item[1], dict) and "conversations" in item[1]
        for item in itertools.islice(entries(path), 10)
    )
