"""Plain text: `{"text"}`."""

from mm1_jax.batch import Document, Record, Text
from mm1_jax.data.record_files import BadRecord


def text_document(record: Record) -> Document:
    """Returns a document of one text segment."""
    if not record["text"].strip():
        raise BadRecord("blank text")
    return Document((Text(record["text"]),))
