"""Hugging Face's Parquet: images as structs of bytes or a path, beside a column of captions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from mm1_jax.batch import Record
from mm1_jax.data.ingest.formats.base import Format, kinds_of_fields
from mm1_jax.data.readers.entries import Entry
from mm1_jax.data.readers.image_files import ImageFolder, stored_image
from mm1_jax.data.readers.parquet import missing_column, row_group_units, rows
from mm1_jax.data.readers.source_files import Unit
from mm1_jax.data.record_files import RecordKind
from mm1_jax.data.records import captions_record, records_of

_IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp")
_CAPTIONS = ("caption", "captions", "text", "txt", "alt_text", "sentences")
_URL = "url"


class HfCaptions(Format):
    """Captions, one record per row; a list of strings is several captions of an image.

    Args:
        image_column: Defaults to the first existing one of image, img, jpg, jpeg, png, webp.
        caption_column: Defaults to the first existing one of caption, captions, text, txt,
            alt_text, sentences.
        caption_kind: The `kind` of the captions in the records.
        captions: Several columns of captions, as "COLUMN=KIND,COLUMN=KIND", in place of the two
            options above.
    """

    name = "hf_captions"
    kind = RecordKind.CAPTIONS

    def __init__(
        self,
        *,
        image_column: str | None = None,
        caption_column: str | None = None,
        caption_kind: str = "caption",
        captions: str | None = None,
    ):
        self._images = _IMAGES if image_column is None else (image_column,)
        # Names of which a file has one -> the kind of the captions.
        self._captions = {_CAPTIONS if caption_column is None else (caption_column,): caption_kind}
        if captions is not None:
            self._captions = {(name,): kind for name, kind in kinds_of_fields(captions).items()}

    def units(self, source: Path) -> list[Unit]:
        expected = "Parquet with a picture and a caption a row"
        return row_group_units(source, self._choose, expected, self.follow_links)

    def read(self, unit: Unit) -> Iterator[Entry]:
        # Paths of images whose bytes are not in the row are relative to this folder.
        folder = ImageFolder(unit.path.parent, self.follow_links)

        def record(entry: str, row: dict[str, Any]) -> Record:
            image, *columns = (
                next(row[name] for name in names if name in row)
                for names in (self._images, *self._captions)
            )
            of_kind = [
                (caption, kind)
                for column, kind in zip(columns, self._captions.values(), strict=True)
                for caption in (column if isinstance(column, list) else [column])
            ]
            data = stored_image(image, folder)
            return captions_record(entry, data, of_kind, url=row.get(_URL))

        return records_of(rows(unit, self._choose), record)

    def _choose(self, schema: pa.Schema) -> list[str]:
        columns = []
        for names in (self._images, *self._captions):
            there = [name for name in names if name in schema.names]
            if not there:
                raise missing_column(names, schema)
            columns.append(there[0])
        return columns + [_URL] * (_URL in schema.names)
