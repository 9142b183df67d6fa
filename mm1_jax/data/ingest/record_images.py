"""Lists the images of a record of any kind, and removes some of them."""

import io
import warnings
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import PIL.Image

from mm1_jax.batch import Record
from mm1_jax.data.images import FORMATS, BadImage
from mm1_jax.data.record_files import RecordKind


class RecordImage(NamedTuple):
    """An image of a record: its place in the list of images, its file, and its URL."""

    place: int
    data: bytes
    url: str | None


def images_of(record: Record, kind: RecordKind) -> Iterator[RecordImage]:
    """Yields the images of a record in order; places without one are skipped."""
    if kind is RecordKind.CAPTIONS:
        images, urls = [record["image"]], [record.get("url")]
    else:
        images = record["images"]
        urls = record.get("urls") or [None] * len(images)
    for place, (image, url) in enumerate(zip(images, urls, strict=True)):
        if image is not None:
            yield RecordImage(place, image, url)


def without_images(record: Record, kind: RecordKind, places: Iterable[int]) -> Record | None:
    """Returns the record without the images at `places`; None if it must be dropped."""
    places = set(places)
    if not places:
        return record
    if kind is not RecordKind.INTERLEAVED:
        return None
    kept = [place for place in range(len(record["images"])) if place not in places]
    if not kept:
        return None
    parallel = [name for name in ("texts", "images", "urls") if record.get(name) is not None]
    return dict(record) | {name: [record[name][place] for place in kept] for name in parallel}


def encoded_size(data: bytes) -> tuple[int, int]:
    """Reads width and height from the header; raises BadImage if it is damaged."""
    try:
        # Pillow warns of large images; here the caller checks sizes. For images above twice
        # Pillow's limit it raises an error, so their size remains unknown.
        with (
            warnings.catch_warnings(action="ignore", category=PIL.Image.DecompressionBombWarning),
            PIL.Image.open(io.BytesIO(data), formats=FORMATS) as picture,
        ):
            return picture.size
    # Pillow's parsers raise nearly anything on a damaged file.
    except Exception as error:
        raise BadImage(f"{type(error).__name__}: {error}") from error
