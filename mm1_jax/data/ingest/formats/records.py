"""Canonical records from values of any type; BadRecord says why there is none."""

import base64
import binascii
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from mm1_jax.batch import Record
from mm1_jax.data.ingest.formats.base import Rejected
from mm1_jax.data.record_files import BadRecord

IMAGE = "<image>"
_ROLES = ("user", "assistant", "system")

Entry = TypeVar("Entry")


def records_of(
    entries: Iterable[tuple[str, Entry] | Rejected], make: Callable[[str, Entry], Record]
) -> Iterator[Record | Rejected]:
    """`make(id, entry)` of each entry, or a Rejected where it raises BadRecord."""
    for item in entries:
        if isinstance(item, Rejected):
            yield item
            continue
        try:
            yield make(*item)
        except BadRecord as error:
            yield Rejected(item[0], str(error))


def captions_record(
    id: str, image: Any, captions: Iterable[tuple[Any, Any]], **extras: Any
) -> dict[str, Any]:
    """A picture with pairs of a caption and its kind; blank captions are left out.

    `extras` are strings or numbers that the source may have, such as `url`, and `source_id`, what
    the source calls the entry; those of any other type are left out.
    """
    if not isinstance(image, bytes):
        raise BadRecord("no image" if image is None else f"the image is a {type(image).__name__}")
    if not image:
        raise BadRecord("the image is empty")
    kept = [
        {"text": text, "kind": kind if isinstance(kind, str) else "caption"}
        for text, kind in ((as_text(text, "caption"), kind) for text, kind in captions)
        if text.strip()
    ]
    if not kept:
        raise BadRecord("empty caption")
    return {"id": id, "image": image, "captions": kept} | known(**extras)


def text_record(id: str, text: Any, **extras: Any) -> dict[str, Any]:
    """A text that is not blank."""
    if not as_text(text, "text").strip():
        raise BadRecord("empty text")
    return {"id": id, "text": text} | known(**extras)


def conversation_record(
    id: str, images: list[bytes], turns: Sequence[tuple[Any, Any]], **extras: Any
) -> dict[str, Any]:
    """Pairs of a role and a text, about pictures; without as many pictures as texts name, none."""
    named = 0
    for role, text in turns:
        if role not in _ROLES:
            raise BadRecord(f"role {role!a:.80}; expected one of {', '.join(_ROLES)}")
        named += as_text(text, f"text of the {role}").count(IMAGE)
    if named > len(images):
        raise BadRecord(f"{named} times {IMAGE} for {len(images)} images")
    if not any(role == "assistant" and text.strip() for role, text in turns):
        raise BadRecord("no answer that is not blank")
    turns_made = [{"role": role, "text": text} for role, text in turns]
    return {"id": id, "images": images, "turns": turns_made} | known(**extras)


class Page:
    """An interleaved record in the making: texts and pictures in reading order.

    A picture that cannot be had has no place in the record, which counts it in `missing_images`.
    """

    def __init__(self):
        self._texts: list[str | None] = []
        self._images: list[bytes | None] = []
        self._urls: list[str | None] = []
        self._num_missing = 0

    def add_text(self, text: str) -> None:
        self._add(text, None, None)

    def add_image(self, read: Callable[[], bytes], url: Any = None) -> None:
        """The picture that `read` returns; none where it raises BadRecord."""
        try:
            image = read()
        except BadRecord:
            image = b""
        if image:
            self._add(None, image, url if isinstance(url, str) else None)
        else:
            self._num_missing += 1

    def record(self, id: str, **extras: Any) -> dict[str, Any]:
        if not any(self._images) and not any(text and text.strip() for text in self._texts):
            missing = f"; {self._num_missing} images are missing" if self._num_missing else ""
            raise BadRecord(f"an empty page{missing}")
        return {
            "id": id,
            "texts": self._texts,
            "images": self._images,
            "urls": self._urls,
            "missing_images": self._num_missing,
        } | known(**extras)

    def _add(self, text: str | None, image: bytes | None, url: str | None) -> None:
        self._texts.append(text)
        self._images.append(image)
        self._urls.append(url)


def parallel_page(
    texts: Any, images: Any, read: Callable[[Any], bytes], urls: Sequence[Any] = ()
) -> Page:
    """The page of the lists of OBELICS, one of which has a value at each place.

    `read` returns the picture that a value of `images` stands for; a place without either is a
    picture that somebody else failed to get. The URL at a place is that of `urls`, if it has one.
    """
    if not isinstance(texts, list) or not isinstance(images, list):
        raise BadRecord("texts and images are not both lists")
    if len(texts) != len(images):
        raise BadRecord(f"{len(texts)} texts beside {len(images)} images")
    page = Page()
    for place, (text, image) in enumerate(zip(texts, images, strict=True)):
        if text is None:
            url = urls[place] if place < len(urls) else None
            page.add_image(lambda image=image: read(image), url)
        elif image is not None:
            raise BadRecord(f"place {place} has a text and an image")
        else:
            page.add_text(as_text(text, f"text {place}"))
    return page


def as_text(value: Any, what: str) -> str:
    """The value, if it is a string."""
    if not isinstance(value, str):
        raise _of_another_type(value, what, "a string")
    return value


def as_list(value: Any, what: str) -> list[Any]:
    """The value, if it is a list."""
    if not isinstance(value, list):
        raise _of_another_type(value, what, "a list")
    return value


def _of_another_type(value: Any, what: str, expected: str) -> BadRecord:
    there = f"no {what}" if value is None else f"{what}: a {type(value).__name__}"
    return BadRecord(f"{there}, expected {expected}")


def is_key(value: Any) -> bool:
    """Whether a JSON value can name something: a string, or a whole number."""
    return isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))


def known(**extras: Any) -> dict[str, str]:
    """Those of the values that are strings or whole numbers, as strings."""
    return {name: str(value) for name, value in extras.items() if is_key(value)}


def from_base64(text: Any) -> bytes:
    """The bytes that a string of base64 spells."""
    try:
        return base64.b64decode(as_text(text, "image"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRecord(f"an image that is not base64: {error}") from error
