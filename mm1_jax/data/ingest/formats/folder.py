"""Folders of Markdown or HTML documents with their images; each document is a page."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from mm1_jax.batch import Record
from mm1_jax.data.ingest.formats.base import Format
from mm1_jax.data.readers.compressed import read_document
from mm1_jax.data.readers.entries import Documents, Entry
from mm1_jax.data.readers.image_files import ImageFolder
from mm1_jax.data.readers.markup import ImageReference, html_segments, markdown_segments
from mm1_jax.data.readers.source_files import Unit, documents_below, entry_id, source_files
from mm1_jax.data.record_files import BadRecord, RecordKind
from mm1_jax.data.records import Page, from_base64, page_records, records_of

_MARKDOWN, _HTML = (".md", ".markdown"), (".html", ".htm")
_SUFFIXES = (*_MARKDOWN, *_HTML)
_EXPECTED = "documents in Markdown or HTML, *.md or *.html"
# Documents per unit; one alone would be too little work.
_UNIT_DOCUMENTS = 256


class Folder(Format):
    """Interleaved pages: the text of a document, and its images where it refers to them.

    References are paths inside the folder, relative to the document, or to the folder if they start
    with a slash; or images in base64. Others, such as web addresses, are missing images, which the
    record counts. Markdown text is kept as written; HTML becomes the text that a browser shows.
    Part k of a folder is its k-th run of documents.
    """

    name = "folder"
    kind = RecordKind.INTERLEAVED

    def units(self, source: Path) -> list[Unit]:
        if source.is_file():
            return [Unit(path) for path in source_files(source, _SUFFIXES, _EXPECTED)]
        num_documents = len(documents_below(source, _SUFFIXES, self.follow_links))
        if not num_documents:
            source_files(source, _SUFFIXES, _EXPECTED, self.follow_links)
        return [Unit(source, part) for part in range(-(-num_documents // _UNIT_DOCUMENTS))]

    def read(self, unit: Unit) -> Iterator[Entry]:
        is_document = unit.path.is_file()
        root = unit.path.parent if is_document else unit.path
        start = unit.part * _UNIT_DOCUMENTS
        documents = (
            [unit.path]
            if is_document
            else documents_below(root, _SUFFIXES, self.follow_links)[
                start : start + _UNIT_DOCUMENTS
            ]
        )
        images = ImageFolder(root, self.follow_links)
        return records_of(
            ((entry_id(str(path.relative_to(root))), path) for path in documents),
            lambda entry, path: _record(entry, path, root, images),
        )


def _record(entry: str, path: Path, root: Path, images: ImageFolder) -> Record | Documents:
    text = read_document(path)
    segments = html_segments(text) if path.name.lower().endswith(_HTML) else markdown_segments(text)
    folder = PurePosixPath(path.parent.relative_to(root).as_posix())
    page = Page()
    for segment in segments:
        if isinstance(segment, ImageReference):
            page.add_image(lambda segment=segment: _read(segment.reference, folder, images))
        else:
            page.add_text(segment)
    return page_records(entry, [page])


def _read(reference: str, folder: PurePosixPath, images: ImageFolder) -> bytes:
    head, comma, data = reference.partition(",")
    if comma and head.startswith("data:image/") and head.endswith(";base64"):
        return from_base64("".join(data.split()))
    try:
        parts = urlsplit(reference)
    except ValueError as error:
        raise BadRecord(f"image {reference!a:.200} is no reference") from error
    if parts.scheme or parts.netloc:
        raise BadRecord(f"image {reference!a:.200} is not in the folder")
    path = unquote(parts.path)
    return images.read(path.lstrip("/") if path.startswith("/") else str(folder / path))
