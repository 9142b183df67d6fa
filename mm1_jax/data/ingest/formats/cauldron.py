"""Parquet of The Cauldron and FineVision: `images`, and `texts` of questions and answers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from mm1_jax.batch import Record
from mm1_jax.data.ingest.formats.base import Format
from mm1_jax.data.ingest.formats.chats import counted
from mm1_jax.data.readers.entries import Documents, Entry
from mm1_jax.data.readers.image_files import ImageFolder, stored_image
from mm1_jax.data.readers.json_files import as_object
from mm1_jax.data.readers.parquet import missing_column, row_group_units, rows
from mm1_jax.data.readers.source_files import Unit
from mm1_jax.data.record_files import IMAGE, BadRecord, RecordKind
from mm1_jax.data.records import as_list, conversation_record, is_missing, records_of

_NEEDED = ("images", "texts")
# Keys of a text, and the roles of its turns.
_ROLES = ("user", "assistant")


class Cauldron(Format):
    """Conversations, one per row: all images, then the questions and answers of `texts`.

    Texts have no placeholders; `<image>` in a text rejects a row with images. FineVision has lists
    of ratings, from 1 to 5, one per question: a question is kept if none of its ratings is below
    the least one, and those without a rating are kept.

    Args:
        min_relevance: The least rating in `relevance_ratings`; None keeps all questions.
        min_visual_dependency: The least rating in `visual_dependency_ratings`.
        min_image_correspondence: The least rating in `image_correspondence_ratings`.
        min_formatting: The least rating in `formatting_ratings`.
        source: The name of the dataset in the records. Defaults to `source` of the row, or of its
            first question.
    """

    name = "cauldron"
    kind = RecordKind.CONVERSATIONS

    def __init__(
        self,
        *,
        min_relevance: int | None = None,
        min_visual_dependency: int | None = None,
        min_image_correspondence: int | None = None,
        min_formatting: int | None = None,
        source: str | None = None,
    ):
        least = {
            "relevance_ratings": min_relevance,
            "visual_dependency_ratings": min_visual_dependency,
            "image_correspondence_ratings": min_image_correspondence,
            "formatting_ratings": min_formatting,
        }
        self._least = {name: value for name, value in least.items() if value is not None}
        self._source = source

    def units(self, source: Path) -> list[Unit]:
        expected = "Parquet of The Cauldron or FineVision"
        return row_group_units(source, self._choose, expected, self.follow_links)

    def read(self, unit: Unit) -> Iterator[Entry]:
        folder = ImageFolder(unit.path.parent, self.follow_links)
        return records_of(
            rows(unit, self._choose), lambda entry, row: self._record(entry, row, folder)
        )

    def _record(self, entry: str, row: dict[str, Any], folder: ImageFolder) -> Record | Documents:
        listed = [] if is_missing(row["images"]) else as_list(row["images"], "images")
        texts = [as_object(text) for text in as_list(row["texts"], "texts")]
        low = [
            any(self._is_low(row, name, place) for name in self._least)
            for place in range(len(texts))
        ]
        if texts and all(low):
            raise BadRecord("no question with the least ratings")
        images = [stored_image(image, folder) for image in listed]
        if images and any(IMAGE in str(text.get(who)) for text in texts for who in _ROLES):
            raise BadRecord(f"{IMAGE} in a text of a layout without placeholders")
        turns = [
            (role, text.get(role))
            for text, is_low in zip(texts, low, strict=True)
            if not is_low
            for role in _ROLES
        ]
        source = self._source or row.get("source") or (texts[0].get("source") if texts else None)
        found = conversation_record(entry, images, turns, source=source)
        return counted(found, {"low_rated_questions": sum(low)} if any(low) else {})

    def _is_low(self, row: dict[str, Any], name: str, place: int) -> bool:
        ratings = row[name]
        if is_missing(ratings):
            return False
        if len(as_list(ratings, name)) != len(row["texts"]):
            raise BadRecord(f"{len(ratings)} {name} for {len(row['texts'])} texts")
        rating = ratings[place]
        if is_missing(rating):
            return False
        if not isinstance(rating, int | float):
            raise BadRecord(f"a rating of type {type(rating).__name__} in {name}")
        return rating < self._least[name]

    def _choose(self, schema: pa.Schema) -> list[str]:
        for name in (*_NEEDED, *self._least):
            if name not in schema.names:
                raise missing_column((name,), schema)
        return [*_NEEDED, *self._least, *(["source"] if "source" in schema.names else [])]
