"""LLaVA's conversations: a JSON list, or JSON lines, of turns by human and gpt about images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm1_jax.data.ingest.formats.base import Format
from mm1_jax.data.ingest.formats.chats import LlavaEntries
from mm1_jax.data.readers.entries import Entry
from mm1_jax.data.readers.image_files import ImageSearch, image_files
from mm1_jax.data.readers.json_files import as_object, entries, json_units
from mm1_jax.data.readers.source_files import Unit
from mm1_jax.data.record_files import RecordKind
from mm1_jax.data.records import records_of

_EXPECTED = "JSON of LLaVA: a list, or lines, of objects with conversations"


class Llava(Format):
    """Conversations about any number of images; one JSON file is one unit.

    `image` is a name or a list of names, and is missing in text-only chats; a file with another
    extension takes the place of a missing one. The layout of ShareGPT4V, MAmmoTH-VL, M4-Instruct
    and most others is the same. Turns are `{from, value}`, or `messages` of `{role, content}`.

    Args:
        images: The folder or .tar of the images by name. Defaults to the folder of the JSON file.
        boxes: Convention of the boxes in the texts, which become `<box>`: llava (`[0.1, 0.2, 0.5,
            0.8]` of the image padded to a square), fractions (of the image itself), internvl
            (`<box>[[x, y, x, y]]</box>` from 0 to 1000), qwen (`"bbox_2d": [x, y, x, y]` in pixels
            of the size that an entry gives as resized_width and resized_height). By default they
            are text.
        ocr_tokens: False drops the lines `Reference OCR token: ...` of questions (TextCaps).
        source: The name of the dataset in the records. Defaults to what the entries say.
    """

    name = "llava"
    kind = RecordKind.CONVERSATIONS

    def __init__(
        self,
        *,
        images: str | Path | None = None,
        boxes: str = "none",
        ocr_tokens: bool = True,
        source: str | None = None,
    ):
        self._images = None if images is None else Path(images)
        self._entries = LlavaEntries(boxes, ocr_tokens, source)

    def units(self, source: Path) -> list[Unit]:
        if self._images is not None:
            image_files(self._images)
        return json_units(source, _is_conversation, _EXPECTED, self.follow_links)

    def read(self, unit: Unit) -> Iterator[Entry]:
        images = ImageSearch([image_files(self._images or unit.path.parent, self.follow_links)])
        return records_of(
            entries(unit.path),
            lambda entry, value: self._entries.record(entry, as_object(value), images.read),
        )


def _is_conversation(value: Any) -> bool:
    return isinstance(value, dict) and ("conversations" in value or "messages" in value)
