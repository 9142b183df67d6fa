"""JSON lines of Multimodal C4: sentences, and images that are each matched with one of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm1_jax.data.ingest.formats.base import Format
from mm1_jax.data.readers.compressed import compressed
from mm1_jax.data.readers.entries import Documents, Entry, documents_of
from mm1_jax.data.readers.image_files import ImageFolder, ImageTar, image_files
from mm1_jax.data.readers.json_files import as_object, entries
from mm1_jax.data.readers.source_files import Unit, source_files
from mm1_jax.data.record_files import BadRecord, RecordKind
from mm1_jax.data.records import (
    Page,
    as_list,
    as_text,
    from_base64,
    is_missing,
    page_records,
    records_of,
)


class Mmc4(Format):
    """Interleaved pages: each image precedes the sentence that it is matched with.

    The record counts the images that are left out: unavailable ones in `missing_images`, and those
    that match their sentence too little in `dissimilar_images`.

    Args:
        images: The folder or .tar of images by `image_name`. Defaults to `images` beside the JSON
            lines, or else to their folder. Lines may also contain images, in `image_base64`.
        min_similarity: Images with a lower `matched_sim` are left out; 0.24 as in OpenFlamingo.
    """

    name = "mmc4"
    kind = RecordKind.INTERLEAVED

    def __init__(self, *, images: str | Path | None = None, min_similarity: float = 0.24):
        self._images = None if images is None else Path(images)
        self._min_similarity = min_similarity

    def units(self, source: Path) -> list[Unit]:
        if self._images is not None:
            image_files(self._images)
        expected = "JSON lines of MMC4, *.jsonl, which may be in .gz, .zst or .zip"
        files = source_files(source, compressed(".jsonl"), expected, self.follow_links)
        return [Unit(path) for path in files]

    def read(self, unit: Unit) -> Iterator[Entry]:
        images = image_files(self._images or _image_folder(unit.path), self.follow_links)
        return records_of(entries(unit.path), lambda entry, page: self._record(entry, page, images))

    def _record(self, entry: str, value: Any, images: ImageFolder | ImageTar) -> Documents:
        document = as_object(value)
        sentences = as_list(document.get("text_list"), "text_list")
        before, num_dissimilar = self._images_by_sentence(document, len(sentences))
        page = Page()
        for sentence, infos in zip(sentences, before, strict=True):
            for info in infos:
                page.add_image(lambda info=info: _image(info, images), info.get("raw_url"))
            if not is_missing(sentence):
                page.add_text(as_text(sentence, "sentence"))
        made = documents_of(page_records(entry, [page], source_id=document.get("url")))
        (record,) = made.records
        return Documents(({**record, "dissimilar_images": num_dissimilar},), made.counts)

    def _images_by_sentence(
        self, document: dict[str, Any], num_sentences: int
    ) -> tuple[list[list[dict[str, Any]]], int]:
        """Returns the images before each sentence, and how many match their sentence too little."""
        before: list[list[dict[str, Any]]] = [[] for _ in range(num_sentences)]
        num_dissimilar = 0
        for place, info in enumerate(as_list(document.get("image_info"), "image_info")):
            if is_missing(info):
                continue
            info = as_object(info)
            index, similarity = info.get("matched_text_index"), info.get("matched_sim")
            if type(index) is not int or not 0 <= index < num_sentences:
                raise BadRecord(f"image {place}: sentence {index!a:.80} of {num_sentences}")
            if not isinstance(similarity, int | float) or isinstance(similarity, bool):
                raise BadRecord(f"image {place}: matched_sim={similarity!a:.80}, expected a number")
            # NaN counts as dissimilar.
            if similarity >= self._min_similarity:
                before[index].append(info)
            else:
                num_dissimilar += 1
        return before, num_dissimilar


def _image_folder(path: Path) -> Path:
    """Returns the default folder of images: `images` beside the file, or the file's folder."""
    folder = path.parent / "images"
    return folder if folder.is_dir() else path.parent


def _image(info: dict[str, Any], images: ImageFolder | ImageTar) -> bytes:
    if "image_base64" in info:
        return from_base64(info["image_base64"])
    return images.read(info.get("image_name"))
