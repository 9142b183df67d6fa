"""The functions that turn records into documents, by kind of record."""

from collections.abc import Callable, Mapping

from mm1_jax.batch import Document, Record
from mm1_jax.data.corpora.captions import caption_document
from mm1_jax.data.corpora.conversations import conversation_document
from mm1_jax.data.corpora.interleaved import interleaved_document
from mm1_jax.data.corpora.text import text_document
from mm1_jax.data.record_files import RecordKind

TO_DOCUMENT: Mapping[RecordKind, Callable[[Record], Document]] = {
    RecordKind.CAPTIONS: caption_document,
    RecordKind.INTERLEAVED: interleaved_document,
    RecordKind.TEXT: text_document,
    RecordKind.CONVERSATIONS: conversation_document,
}
