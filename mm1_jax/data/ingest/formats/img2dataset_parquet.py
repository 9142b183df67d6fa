"""Img2dataset's Parquet: caption, key, and image bytes in a column named like their encoding."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from mm1_jax.batch import Record
from mm1_jax.data.ingest.formats.base import Format, kinds_of_fields
from mm1_jax.data.readers.entries import Entry
from mm1_jax.data.readers.parquet import missing_column, row_group_units, rows
from mm1_jax.data.readers.source_files import Unit
from mm1_jax.data.record_files import BadRecord, RecordKind
from mm1_jax.data.records import captions_record, records_of

_IMAGES = ("jpg", "jpeg", "png", "webp")
_CAPTIONS = ("txt", "caption")
_OTHERS = ("key", "url", "status", "error_message")


class Img2datasetParquet(Format):
    """Captions, one record per row; failed downloads are rejected with their error.

    Args:
        caption_kind: The `kind` of the captions in the records.
        captions: Several captions of an image, as "COLUMN=KIND,COLUMN=KIND".
    """

    name = "img2dataset_parquet"
    kind = RecordKind.CAPTIONS

    def __init__(self, *, caption_kind: str = "caption", captions: str | None = None):
        self._caption_kind = caption_kind
        self._kinds = kinds_of_fields(captions)

    def units(self, source: Path) -> list[Unit]:
        expected = "Parquet of img2dataset with images in it"
        return row_group_units(source, self._choose, expected, self.follow_links)

    def read(self, unit: Unit) -> Iterator[Entry]:
        return records_of(rows(unit, self._choose), self._record)

    def _record(self, entry: str, row: dict[str, Any]) -> Record:
        if row.get("status") not in (None, "success"):
            # Without quotes, so that each error is a class of its own (`reason_class`).
            said = [str(row[name]) for name in ("status", "error_message") if row.get(name)]
            raise BadRecord(ascii(": ".join(said))[1:-1][:200] or "no status of the download")
        image, caption = (
            next((row[name] for name in names if row.get(name) is not None), None)
            for names in (_IMAGES, _CAPTIONS)
        )
        captions = [(caption, self._caption_kind)]
        if self._kinds:
            captions = [(row[field], kind) for field, kind in self._kinds.items()]
        return captions_record(entry, image, captions, url=row.get("url"), source_id=row.get("key"))

    def _choose(self, schema: pa.Schema) -> list[str]:
        captions = tuple(self._kinds) or _CAPTIONS
        needed = [(field,) for field in self._kinds] or [_CAPTIONS]
        for names in (_IMAGES, *needed):
            if not set(names) & set(schema.names):
                raise missing_column(names, schema)
        return [name for name in (*_IMAGES, *captions, *_OTHERS) if name in schema.names]
