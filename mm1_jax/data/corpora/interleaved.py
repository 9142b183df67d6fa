"""Pages of text and images in the layout of OBELICS: parallel lists `texts` and `images`.

At each place exactly one of the two lists has a value, the other has None.
"""

from mm1_jax.batch import Document, Image, Record, Text
from mm1_jax.data.readers.marks import END_OF_DOCUMENT
from mm1_jax.data.record_files import BadRecord


def interleaved_document(record: Record) -> Document:
    """Returns the page in reading order, without blank texts."""
    texts, images = record["texts"], record["images"]
    if len(texts) != len(images):
        raise BadRecord(f"{len(texts)} texts beside {len(images)} images")
    segments: list[Text | Image] = []
    for place, (text, image) in enumerate(zip(texts, images, strict=True)):
        if (text is None) == (image is None):
            raise BadRecord(f"place {place} has {'no' if text is None else 'a'} text and image")
        if image is not None:
            segments.append(Image(image))
        elif END_OF_DOCUMENT in text:
            raise BadRecord(
                f"text {place} has {END_OF_DOCUMENT}, where OBELICS ends a document; convert the "
                "pages with `python -m mm1_jax convert_records`, which cuts them there"
            )
        elif text.strip():
            segments.append(Text(text))
    if not segments:
        raise BadRecord("an empty page")
    return Document(tuple(segments))
