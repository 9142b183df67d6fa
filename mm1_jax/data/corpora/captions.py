"""Captioned images: `{"image", "caption"}`, or a list `captions` of `{"text"}`, best first."""

from mm1_jax.batch import Document, Image, Record, Text
from mm1_jax.data.record_files import BadRecord


def caption_document(record: Record) -> Document:
    """Returns the image, followed by its first caption that is not blank."""
    captions = (
        [record["caption"]]
        if "caption" in record
        else [caption["text"] for caption in record["captions"]]
    )
    for caption in captions:
        if caption is not None and caption.strip():
            return Document((Image(record["image"]), Text(caption.strip())))
    raise BadRecord("no caption that is not blank")
