"""Plain text: a field of JSON lines, a column of Parquet, or one document per file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from mm1_jax.batch import Record
from mm1_jax.data.ingest.formats.base import Format
from mm1_jax.data.readers.compressed import compressed, lines, read_document
from mm1_jax.data.readers.entries import Documents, Entry
from mm1_jax.data.readers.json_files import as_object, parse_json
from mm1_jax.data.readers.marks import END_OF_TEXT
from mm1_jax.data.readers.parquet import missing_column, row_group_units, rows
from mm1_jax.data.readers.source_files import Unit, documents_below, entry_id, source_files
from mm1_jax.data.record_files import RecordKind
from mm1_jax.data.records import records_of, text_record

_LINES = (*compressed(".jsonl"), ".json.gz", ".json.zst")
_PARQUET = ".parquet"
_DOCUMENTS = (".txt", ".txt.gz", ".txt.zst")
# Documents per unit; one alone would be too little work.
_UNIT_DOCUMENTS = 1024


class PlainText(Format):
    """Texts from .jsonl, .parquet and .txt files; .jsonl and .txt may be compressed.

    The id of a document is its path in the folder. Part k of a folder is its k-th run of documents.

    Args:
        field: The field of JSON lines, or column of Parquet, that holds the text.
        document_mark: Separates the documents within a text; "" means that there is no mark.
    """

    name = "text"
    kind = RecordKind.TEXT

    def __init__(self, *, field: str = "text", document_mark: str = END_OF_TEXT):
        self._field = field
        self._mark = document_mark

    def units(self, source: Path) -> list[Unit]:
        expected = f"text in {', '.join((*_LINES, _PARQUET, *_DOCUMENTS))}"
        follow = self.follow_links
        if source.is_file():
            source_files(source, (*_LINES, _PARQUET, *_DOCUMENTS), expected)
            if source.name.lower().endswith(_PARQUET):
                return row_group_units(source, self._choose, expected, follow)
            return [Unit(source)]
        num_documents = len(documents_below(source, _DOCUMENTS, follow))
        units = [Unit(source, part) for part in range(-(-num_documents // _UNIT_DOCUMENTS))]
        if documents_below(source, _LINES, follow):
            units += [Unit(path) for path in source_files(source, _LINES, expected, follow)]
        if documents_below(source, (_PARQUET,), follow):
            units += row_group_units(source, self._choose, expected, follow)
        if not units:
            source_files(source, _DOCUMENTS, expected, follow)
        return units

    def read(self, unit: Unit) -> Iterator[Entry]:
        if unit.path.is_dir() or unit.path.name.lower().endswith(_DOCUMENTS):
            return records_of(_documents(unit, self.follow_links), self._document)
        if unit.path.name.lower().endswith(_LINES):
            return records_of(lines(unit.path), self._line)
        return records_of(rows(unit, self._choose), self._record)

    def _document(self, entry: str, path: Path) -> Record | Documents:
        return text_record(entry, read_document(path), self._mark)

    def _line(self, entry: str, line: bytes) -> Record | Documents:
        return self._record(entry, as_object(parse_json(line)))

    def _record(self, entry: str, value: dict[str, Any]) -> Record | Documents:
        return text_record(entry, value.get(self._field), self._mark, source_id=value.get("id"))

    def _choose(self, schema: pa.Schema) -> list[str]:
        if self._field not in schema.names:
            raise missing_column((self._field,), schema)
        return [self._field] + ["id"] * ("id" in schema.names and self._field != "id")


def _documents(unit: Unit, follow_links: bool) -> Iterator[tuple[str, Path]]:
    if unit.path.is_file():
        yield entry_id(unit.path), unit.path
        return
    start = unit.part * _UNIT_DOCUMENTS
    found = documents_below(unit.path, _DOCUMENTS, follow_links)
    for path in found[start : start + _UNIT_DOCUMENTS]:
        yield entry_id(str(path.relative_to(unit.path))), path
