"""LLaVA's conversations in Hugging Face's Parquet: LLaVA-NeXT, LLaVA-OneVision, OneVision-1.5."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from mm1_jax.data.ingest.formats.base import Format
from mm1_jax.data.ingest.formats.chats import LlavaEntries
from mm1_jax.data.readers.entries import Entry
from mm1_jax.data.readers.image_files import ImageFolder, stored_image
from mm1_jax.data.readers.parquet import missing_column, row_group_units, rows
from mm1_jax.data.readers.source_files import Unit
from mm1_jax.data.record_files import RecordKind
from mm1_jax.data.records import records_of

_TURNS = ("conversations", "messages")
_OTHERS = ("image", "images", "id", "sample_id", "source", "data_source", "video", "metadata")
_SIZES = ("resized_width", "resized_height")


class LlavaParquet(Format):
    """Conversations, one per row: `conversations`, and `image` as a struct of bytes or a path.

    `image` may be a list, and is null in text-only chats. Rows whose conversation is not a list of
    turns, such as a map of Markdown, are rejected.

    Args:
        boxes: Convention of the boxes in the texts, as for the format llava.
        ocr_tokens: False drops the lines `Reference OCR token: ...` of questions (TextCaps).
        source: The name of the dataset in the records. Defaults to `data_source` of the rows.
    """

    name = "llava_parquet"
    kind = RecordKind.CONVERSATIONS

    def __init__(self, *, boxes: str = "none", ocr_tokens: bool = True, source: str | None = None):
        self._entries = LlavaEntries(boxes, ocr_tokens, source)

    def units(self, source: Path) -> list[Unit]:
        return row_group_units(source, _choose, "Parquet of conversations", self.follow_links)

    def read(self, unit: Unit) -> Iterator[Entry]:
        folder = ImageFolder(unit.path.parent, self.follow_links)
        return records_of(
            rows(unit, _choose),
            lambda entry, row: self._entries.record(
                entry, row, lambda image: stored_image(image, folder)
            ),
        )


def _choose(schema: pa.Schema) -> list[str]:
    if not set(_TURNS) & set(schema.names):
        raise missing_column(_TURNS, schema)
    return [name for name in (*_TURNS, *_OTHERS, *_SIZES) if name in schema.names]
