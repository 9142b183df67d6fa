"""Canonical records from values of any type; BadRecord says why there is none."""

import base64
import binascii
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from mm1_jax.batch import Record
from mm1_jax.data.readers.entries import Documents, Entry, Rejected, reason_class
from mm1_jax.data.readers.marks import END_OF_DOCUMENT, cut
from mm1_jax.data.readers.source_files import entry_id
from mm1_jax.data.record_files import BadRecord

IMAGE = "<image>"
_ROLES = ("user", "assistant", "system")

Value = TypeVar("Value")


def records_of(
    entries: Iterable[tuple[str, Value] | Rejected | Documents],
    make: Callable[[str, Value], Record | Documents],
) -> Iterator[Entry]:
    """`make(id, value)` of each entry, or a Rejected where it raises BadRecord."""
    for item in entries:
        if isinstance(item, Rejected | Documents):
            yield item
            continue
        try:
            yield make(*item)
        except BadRecord as error:
            yield Rejected(item[0], str(error))


def captions_record(
    id: str, image: Any, captions: Sequence[tuple[Any, Any]], **extras: Any
) -> dict[str, Any]:
    """A picture with pairs of a caption and its kind; blank and missing captions are left out.

    `extras` are strings or numbers that the source may have, such as `url`, and `source_id`, what
    the source calls the entry; those of any other type are left out.
    """
    if not isinstance(image, bytes):
        raise BadRecord("no image" if image is None else f"the image is a {type(image).__name__}")
    if not image:
        raise BadRecord("the image is empty")
    there = [(as_text(text, "caption"), kind) for text, kind in captions if not is_missing(text)]
    kept = [
        {"text": text, "kind": kind if isinstance(kind, str) else "caption"}
        for text, kind in there
        if text.strip()
    ]
    if not kept:
        is_missing_all = captions and not there
        raise BadRecord("no caption, expected a string" if is_missing_all else "empty caption")
    return {"id": id, "image": image, "captions": kept} | known(**extras)


def text_record(id: str, text: Any, mark: str = "", **extras: Any) -> Record | Documents:
    """A text that is not blank; several, if the mark of the end of a document stands in it."""
    parts = cut(as_text(text, "text"), mark)
    texts = {place: part for place, part in enumerate(parts) if part.strip()}
    if not texts:
        raise BadRecord("empty text")
    if len(parts) == 1:
        return {"id": id, "text": text} | known(**extras)
    return Documents(
        tuple(
            {"id": entry_id(id, place), "text": part} | known(**extras)
            for place, part in texts.items()
        ),
        _cut_counts(len(parts), len(texts)),
    )


def conversation_record(
    id: str, images: list[bytes], turns: Sequence[tuple[Any, Any]], **extras: Any
) -> dict[str, Any]:
    """Pairs of a role and a text, about pictures; without as many pictures as texts name, none.

    A missing text is a blank one.
    """
    turns = [(role, "" if is_missing(text) else text) for role, text in turns]
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

    Attributes:
        missing: How many pictures could not be had, by the class of the reason.
    """

    def __init__(self):
        self._texts: list[str | None] = []
        self._images: list[bytes | None] = []
        self._urls: list[str | None] = []
        self.missing: Counter[str] = Counter()

    def add_text(self, text: str) -> None:
        self._add(text, None, None)

    def add_image(self, read: Callable[[], bytes], url: Any = None) -> None:
        """The picture that `read` returns; none where it raises BadRecord."""
        try:
            image = read()
            if not image:
                raise BadRecord("it is empty")
        except BadRecord as error:
            self.missing[reason_class(str(error))] += 1
            return
        self._add(None, image, url if isinstance(url, str) else None)

    @property
    def is_empty(self) -> bool:
        """Tells if there is neither a picture nor a text that is not blank."""
        return not any(self._images) and not any(text and text.strip() for text in self._texts)

    def record(self, id: str, **extras: Any) -> Record:
        return {
            "id": id,
            "texts": self._texts,
            "images": self._images,
            "urls": self._urls,
            "missing_images": self.missing.total(),
        } | known(**extras)

    def _add(self, text: str | None, image: bytes | None, url: str | None) -> None:
        self._texts.append(text)
        self._images.append(image)
        self._urls.append(url)


def page_records(id: str, pages: Sequence[Page], **extras: Any) -> Record | Documents:
    """The record of a page, or of each part of it that is not empty, and what is missing of them.

    Raises:
        BadRecord: All are empty.
    """
    missing = sum((page.missing for page in pages), Counter[str]())
    kept = {place: page for place, page in enumerate(pages) if not page.is_empty}
    if not kept:
        total = missing.total()
        raise BadRecord("an empty page" + (f"; {total} images are missing" if total else ""))
    counts = {f"missing_images.{reason}": count for reason, count in missing.items()}
    if len(pages) == 1:
        record = pages[0].record(id, **extras)
        return Documents((record,), counts) if counts else record
    lost = sum(page.missing.total() for page in pages if page.is_empty)
    return Documents(
        tuple(page.record(entry_id(id, place), **extras) for place, page in kept.items()),
        counts | ({"missing_images": lost} if lost else {}) | _cut_counts(len(pages), len(kept)),
    )


def parallel_record(
    id: str,
    texts: Any,
    images: Any,
    read: Callable[[Any], bytes],
    urls: Sequence[Any] = (),
    **extras: Any,
) -> Record | Documents:
    """The page of the lists of OBELICS, one of which has a value at each place.

    A page that has OBELICS' mark of the end of a document is cut there, and each part that is not
    empty is a record. `read` returns the picture that a value of `images` stands for; a place
    without either is a picture that somebody else failed to get. The URL at a place is that of
    `urls`, if it has one.
    """
    return page_records(id, _parallel_pages(texts, images, read, urls), **extras)


def _cut_counts(num_parts: int, num_records: int) -> dict[str, int]:
    num_empty = num_parts - num_records
    return {"end_of_document_marks": num_parts - 1} | (
        {"empty_documents": num_empty} if num_empty else {}
    )


def _parallel_pages(
    texts: Any, images: Any, read: Callable[[Any], bytes], urls: Sequence[Any]
) -> list[Page]:
    if not isinstance(texts, list) or not isinstance(images, list):
        raise BadRecord("texts and images are not both lists")
    if len(texts) != len(images):
        raise BadRecord(f"{len(texts)} texts beside {len(images)} images")
    pages = [Page()]
    for place, (text, image) in enumerate(zip(texts, images, strict=True)):
        is_image = not (is_missing(image) or image == "")
        is_blank = is_missing(text) or (isinstance(text, str) and not text.strip())
        if is_missing(text) or (is_image and is_blank):
            url = urls[place] if place < len(urls) else None
            pages[-1].add_image(lambda image=image: read(image), url)
        elif is_image:
            raise BadRecord(f"place {place} has a text and an image")
        else:
            parts = cut(as_text(text, f"text {place}"), END_OF_DOCUMENT)
            for number, part in enumerate(parts):
                if number:
                    pages.append(Page())
                if part or len(parts) == 1:
                    pages[-1].add_text(part)
    return pages


def is_missing(value: Any) -> bool:
    """Tells if a value stands for none: null, or NaN, which pandas writes for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


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
