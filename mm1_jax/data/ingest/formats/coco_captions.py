"""COCO's caption files: one JSON object of `images` and `annotations`, which are joined here."""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm1_jax.batch import Record
from mm1_jax.data.ingest.formats.base import Format
from mm1_jax.data.readers.compressed import compressed
from mm1_jax.data.readers.entries import Entry, Rejected
from mm1_jax.data.readers.image_files import ImageFolder, image_files
from mm1_jax.data.readers.json_files import as_object, stream_json
from mm1_jax.data.readers.source_files import Unit, entry_id, source_files
from mm1_jax.data.record_files import BadRecord, RecordKind
from mm1_jax.data.records import as_text, captions_record, is_key, records_of

_EXPECTED = "a JSON file of COCO captions: images, and annotations that have a caption"


class CocoCaptions(Format):
    """Captions, one record per image, in the order of `images`; one JSON file is one unit.

    The captions of a whole file are in memory, as annotations come in any order.

    Args:
        images: The folder or .tar of images by `file_name`. By default it is searched for around
            the JSON file: the file's folder and its parent, and in either of them `images` and the
            split of the file's name (`val2017` for `captions_val2017.json`).
    """

    name = "coco_captions"
    kind = RecordKind.CAPTIONS

    def __init__(self, *, images: str | Path | None = None):
        self._images = None if images is None else Path(images)

    def units(self, source: Path) -> list[Unit]:
        files = source_files(source, compressed(".json"), _EXPECTED, self.follow_links)
        files = [path for path in files if _holds_captions(path)]
        if not files:
            raise ValueError(f"{source}: expected {_EXPECTED}")
        if self._images is not None:
            image_files(self._images)
        for path in files:
            if self._images is None and _image_folder(path, self.follow_links) is None:
                raise ValueError(
                    f"no folder around {path} has its images; set images to a folder or .tar "
                    f"that has {', '.join(map(ascii, _first_names(path)[:2]))}, ..."
                )
        return [Unit(path) for path in files]

    def read(self, unit: Unit) -> Iterator[Entry]:
        found = self._images or _image_folder(unit.path, self.follow_links)
        images = image_files(found or unit.path.parent, self.follow_links)
        captions = defaultdict(list)
        for item in _elements(unit.path, "annotations"):
            if isinstance(item, Rejected):
                yield item
                continue
            entry, value = item
            try:
                annotation = as_object(value)
                caption = as_text(annotation.get("caption"), "caption")
                captions[_key(annotation, "image_id")].append((caption, "caption"))
            except BadRecord as error:
                yield Rejected(entry, str(error))

        def record(entry: str, value: Any) -> Record:
            about = as_object(value)
            key = _key(about, "id")
            if key not in captions:
                raise BadRecord(f"no caption left for image {key!a:.80}")
            of_image = captions.pop(key)
            image = images.read(about.get("file_name"))
            url = about.get("coco_url")
            return captions_record(entry, image, of_image, url=url, source_id=key)

        # Errors that end the reading of the file have been reported above.
        found = (item for item in _elements(unit.path, "images") if not isinstance(item, Rejected))
        yield from records_of(found, record)
        for key, of_image in captions.items():
            entry = entry_id(unit.path, f"image_id {key!a:.80}")
            yield Rejected(entry, f"{len(of_image)} captions of an image that is not listed")


def _elements(path: Path, key: str) -> Iterator[tuple[str, Any] | Rejected]:
    """Yields the elements of a list of a file, and a Rejected if reading the file fails."""
    for item in stream_json(path):
        if isinstance(item, Rejected):
            yield item
        elif item.key == key and item.place is not None:
            yield item.id, item.value


def _key(value: dict[str, Any], name: str) -> str | int:
    if not is_key(value.get(name)):
        raise BadRecord(f"{name} is {value.get(name)!a:.80}, expected a number or a string")
    return value[name]


def _holds_captions(path: Path) -> bool:
    """True if the first annotation has a caption: files of boxes look the same up to there."""
    for item in _elements(path, "annotations"):
        return not isinstance(item, Rejected) and isinstance(item[1], dict) and "caption" in item[1]
    return False


def _first_names(path: Path) -> list[Any]:
    """Returns the names of the first images; several, as some of a dataset may be lost."""
    found = (item for item in _elements(path, "images") if not isinstance(item, Rejected))
    values = (value for _, value in itertools.islice(found, 50))
    return [value.get("file_name") for value in values if isinstance(value, dict)]


def _image_folder(path: Path, follow_links: bool) -> Path | None:
    """Returns the folder around a JSON file that has most of its first images."""
    names = _first_names(path)
    if not names:
        return path.parent
    split = re.sub(r".*captions_|\.json.*", "", path.name)
    folders = [
        folder
        for parent in (path.parent, path.parent.parent)
        for folder in (parent, parent / "images", parent / split, parent / "images" / split)
        if folder.is_dir()
    ]
    found = [sum(map(ImageFolder(folder, follow_links).has, names)) for folder in folders]
    return folders[found.index(max(found))] if any(found) else None
