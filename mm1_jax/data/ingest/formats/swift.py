"""JSON lines of ms-swift: `messages`, `images`, and `objects` for boxes and their names."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mm1_jax.batch import Record
from mm1_jax.data.grounding import FRACTIONS, Frame, pixels, region
from mm1_jax.data.ingest.formats.base import Format
from mm1_jax.data.ingest.formats.chats import Boxes, Turns, first_of, said_turns, size_of
from mm1_jax.data.readers.entries import Documents, Entry
from mm1_jax.data.readers.image_files import ImageFolder, ImageSearch, ImageTar, image_files
from mm1_jax.data.readers.json_files import as_object, entries, json_units
from mm1_jax.data.readers.source_files import Unit
from mm1_jax.data.record_files import BadRecord, RecordKind
from mm1_jax.data.records import (
    as_list,
    as_text,
    conversation_record,
    from_base64,
    is_missing,
    records_of,
)

_EXPECTED = "JSON of ms-swift: a list, or lines, of objects with messages or query and response"
# Keys of a single question and its answer: ms-swift, Alpaca and MathInstruct, OpenOrca, Dolly.
_SYSTEMS = ("system", "system_prompt")
_QUERIES = ("query", "instruction", "question")
_INPUTS = ("input", "context")
_RESPONSES = ("response", "output")
_PLACE = re.compile("<(ref-object|bbox)>")


class Swift(Format):
    """Conversations about any number of images; one JSON file is one unit.

    `<ref-object>` becomes the next name of `objects.ref`, and `<bbox>` the next box or point of
    `objects.bbox`, in pixels of the image (`bbox_type` real, the default) or in fractions of it
    (norm1). `image_id` gives the image of each box; by default all are in the first one. A turn of
    `messages` may have a `loss`. Entries of one question are read, too: `query`, `response`,
    `history` and `system`, and in the keys of Alpaca, Dolly and OpenOrca.

    Args:
        images: The folder or .tar of the images by name. Defaults to the folder of the JSON file.
        source: The name of the dataset in the records.
    """

    name = "swift"
    kind = RecordKind.CONVERSATIONS

    def __init__(self, *, images: str | Path | None = None, source: str | None = None):
        self._images = None if images is None else Path(images)
        self._source = source

    def units(self, source: Path) -> list[Unit]:
        if self._images is not None:
            image_files(self._images)
        return json_units(source, _is_conversation, _EXPECTED, self.follow_links)

    def read(self, unit: Unit) -> Iterator[Entry]:
        place = image_files(self._images or unit.path.parent, self.follow_links)
        return records_of(
            entries(unit.path),
            lambda entry, value: self._record(entry, as_object(value), place),
        )

    def _record(
        self, entry: str, value: Mapping[str, Any], place: ImageFolder | ImageTar
    ) -> Record | Documents:
        for name in ("videos", "audios"):
            if value.get(name):
                raise BadRecord(f"a conversation with {name}")
        listed = value.get("images")
        listed = [] if is_missing(listed) else listed if isinstance(listed, list) else [listed]
        images = [_read(image, ImageSearch([place])) for image in listed]
        turns = _turns(value)
        boxes: Boxes = []
        if not is_missing(value.get("objects")):
            turns, boxes = _with_objects(turns, as_object(value["objects"]), images)
        source = self._source or value.get("source")
        return conversation_record(
            entry, images, turns, boxes=boxes, source_id=value.get("id"), source=source
        )


def _read(image: Any, images: ImageSearch) -> bytes:
    """Returns the bytes of an image: a name, a data URL, or a map with a path or base64 bytes."""
    if isinstance(image, dict):
        data = image.get("bytes")
        return _read(image.get("path"), images) if is_missing(data) else from_base64(data)
    if isinstance(image, str) and image.startswith("data:image/"):
        return from_base64(image.partition(",")[2])
    return images.read(image)


def _turns(value: Mapping[str, Any]) -> Turns:
    if "messages" in value:
        return said_turns(value, "messages")
    history = value.get("history")
    pairs = [] if is_missing(history) else as_list(history, "history")
    if any(not isinstance(pair, list) or len(pair) != 2 for pair in pairs):
        raise BadRecord("a history that is not pairs of query and response")
    query, more = first_of(value, *_QUERIES), first_of(value, *_INPUTS)
    if isinstance(query, str) and isinstance(more, str) and more.strip():
        query = f"{query}\n{more}"
    system = first_of(value, *_SYSTEMS)
    turns: Turns = [] if is_missing(system) else [("system", system, None)]
    asked = [*pairs, [query, first_of(value, *_RESPONSES)]]
    for query, response in asked:
        turns += [("user", query, None), ("assistant", response, None)]
    return turns


def _with_objects(
    turns: Turns, objects: Mapping[str, Any], images: list[bytes]
) -> tuple[Turns, Boxes]:
    """Replaces the placeholders of names and boxes, each of which must be used once."""
    names = _listed(objects, "ref")
    values = _listed(objects, "bbox")
    places = _listed(objects, "image_id") or [0] * len(values)
    if len(places) != len(values):
        raise BadRecord(f"{len(places)} image_id for {len(values)} bbox")
    texts = [text for _, text, _ in turns if isinstance(text, str)]
    found = [kind for text in texts for kind in _PLACE.findall(text)]
    for kind, given in (("ref-object", names), ("bbox", values)):
        if found.count(kind) != len(given):
            raise BadRecord(f"{found.count(kind)} times <{kind}> for {len(given)} of them")
    next_name = iter(names)
    boxes: Boxes = []
    next_region = zip(values, places, strict=True)

    def replace(match: re.Match) -> str:
        if match[1] == "ref-object":
            return as_text(next(next_name), "ref")
        corners, place = next(next_region)
        if not isinstance(place, int) or not 0 <= place < len(images):
            raise BadRecord(f"a box in image_id {place!a:.20} of {len(images)} images")
        where = region(corners, _frame(objects, images[place]))
        kind = "box" if len(where) == 4 else "point"
        boxes.append({"image": place, kind: list(where)})
        return f"<{kind}>"

    replaced: Turns = [
        (role, _PLACE.sub(replace, text) if isinstance(text, str) else text, loss)
        for role, text, loss in turns
    ]
    return replaced, boxes


def _listed(objects: Mapping[str, Any], name: str) -> list[Any]:
    return [] if is_missing(objects.get(name)) else as_list(objects[name], name)


def _frame(objects: Mapping[str, Any], image: bytes) -> Frame:
    kind = objects.get("bbox_type")
    if is_missing(kind) or kind == "real":
        return pixels(*size_of(image))
    if kind == "norm1":
        return FRACTIONS
    raise BadRecord(f"bbox_type {kind!a:.80}; expected real or norm1")


def _is_conversation(value: Any) -> bool:
    return isinstance(value, dict) and any(name in value for name in ("messages", *_RESPONSES))
