"""The functions that turn records into documents, by kind of record."""

from collections.abc import Callable, Mapping

from mm1_jax.batch import Document, Record
from mm1_jax.data.corpora.captions import caption_document
from mm1_jax.data.corpora.conversations import conversation_document
from mm1_jax.data.corpora.interleaved import interleaved_document
from mm1_jax.data.corpora.text import text_document
from mm1_jax.data.record_files import Kind

TO_DOCUMENT: Mapping[Kind, Callable[[Record], Document]] = {
    Kind.CAPTIONS: caption_document,
    Kind.INTERLEAVED: interleaved_document,
    Kind.TEXT: text_document,
    Kind.CONVERSATIONS: conversation_document,
}
