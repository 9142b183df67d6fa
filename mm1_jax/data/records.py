"""Builds validated records from untyped values, or raises BadRecord with the reason."""

import base64
import binascii
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from mm1_jax.batch import Record
from mm1_jax.data.readers.entries import Documents, Entry, Rejected, reason_class
from mm1_jax.data.readers.marks import END_OF_DOCUMENT, cut
from mm1_jax.data.readers.source_files import entry_id
from mm1_jax.data.record_files import BOX, IMAGE, POINT, BadRecord
from mm1_jax.data.turns import RecordTurn, alternating

_ROLES = ("user", "assistant", "system")
# A tag on a line of its own where datasets put the image of a question.
_IMAGE_LINE = re.compile(rf"\A\s*{IMAGE}[ \t\r]*(\n|\Z)|\n[ \t]*{IMAGE}\s*\Z")
_MARK = re.compile(f"{BOX}|{POINT}")

Value = TypeVar("Value")


def records_of(
    entries: Iterable[tuple[str, Value] | Rejected | Documents],
    make: Callable[[str, Value], Record | Documents],
) -> Iterator[Entry]:
    """Yields `make(id, value)` for each entry, or a Rejected if it raises BadRecord."""
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
    """Builds a captions record from an image and (caption, kind) pairs.

    Blank and missing captions are dropped. `extras` are optional strings or integers such as `url`
    and `source_id` (the entry's id in the source); values of other types are dropped.
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
    """Builds a text record, or one per non-blank part if the text has end-of-document marks."""
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
    id: str,
    images: Sequence[Any],
    turns: Sequence[tuple[Any, Any] | tuple[Any, Any, Any]],
    *,
    boxes: Sequence[Mapping[str, Any]] | None = None,
    fields: Mapping[str, Any] | None = None,
    **extras: Any,
) -> Record | Documents:
    """Builds a conversation record; counts the turns that `turns.alternating` drops or merges.

    `<image>` stands for the next image. If no text has one, all images precede the first turn. In a
    conversation without images it is text, unless it has a line of its own at the beginning or at
    the end of a question: then an image is missing.

    Args:
        turns: Pairs of a role and a text, or triples with a loss flag. A missing text counts as
            blank, a missing flag as true.
        boxes: Boxes and points that the texts name by `<box>` and `<point>`, in order:
            `{"image": place, "box": [left, top, right, bottom]}` or `{"image": place, "point": [x,
            y]}`, in fractions of the image. Without boxes these words are text.
        fields: Further fields of the record.

    Raises:
        BadRecord: A role is unknown; the texts do not name each image and each box once, if they
            name any; or no answer has text.
    """
    for image in images:
        if not isinstance(image, bytes) or not image:
            raise BadRecord("an image without bytes")
    said = [_said(*turn) for turn in turns]
    texts = [turn.text for turn in said]
    named = sum(text.count(IMAGE) for text in texts) if images else 0
    if named not in (0, len(images)):
        raise BadRecord(f"{named} times {IMAGE} for {len(images)} images")
    lost = sum(turn.role == "user" and bool(_IMAGE_LINE.search(turn.text)) for turn in said)
    if lost and not images:
        raise BadRecord(f"{lost} times {IMAGE} for 0 images")
    checked = [_checked_box(box, len(images)) for box in boxes or ()]
    marks = [_MARK.findall(text) if checked else [] for text in texts]
    expected = [BOX if "box" in box else POINT for box in checked]
    if (found := sum(marks, [])) != expected:
        order = "; their order differs" if sorted(found) == sorted(expected) else ""
        raise BadRecord(
            f"{found.count(BOX)} times {BOX} and {found.count(POINT)} times {POINT} for "
            f"{expected.count(BOX)} boxes and {expected.count(POINT)} points{order}"
        )
    next_image, next_box = iter(images if named else ()), iter(checked)
    for turn, own in zip(said, marks, strict=True):
        turn.images = list(itertools.islice(next_image, turn.text.count(IMAGE)))
        turn.boxes = list(itertools.islice(next_box, len(own)))
    kept, counts = alternating(said)
    record: dict[str, Any] = {
        "id": id,
        "images": sum((turn.images for turn in kept), []) if named else list(images),
        "turns": [
            {"role": turn.role, "text": turn.text} | ({} if turn.has_loss else {"loss": False})
            for turn in kept
        ],
    }
    if left := sum((turn.boxes for turn in kept), []):
        if any(box["image"] >= len(record["images"]) for box in left):
            raise BadRecord("a box in an image of a question without an answer")
        record["boxes"] = left
    record |= known(**extras) | dict(fields or {})
    return Documents((record,), dict(counts)) if counts else record


def _said(role: Any, text: Any, loss: Any = None) -> RecordTurn:
    if role not in _ROLES:
        raise BadRecord(f"role {role!a:.80}; expected one of {', '.join(_ROLES)}")
    if not (is_missing(loss) or isinstance(loss, bool)):
        raise BadRecord(f"loss {loss!a:.80}; expected true or false")
    text = "" if is_missing(text) else as_text(text, f"text of the {role}")
    return RecordTurn(role, text, has_loss=role != "assistant" or loss is not False)


def _checked_box(box: Mapping[str, Any], num_images: int) -> dict[str, Any]:
    """Returns a box or a point with its numbers as floats."""
    kind = "box" if "box" in box else "point"
    numbers = box.get(kind)
    image = box.get("image")
    if not isinstance(image, int) or not 0 <= image < num_images:
        raise BadRecord(f"a {kind} in image {image!a:.20} of {num_images}")
    size = 4 if kind == "box" else 2
    if (
        not isinstance(numbers, list | tuple)
        or len(numbers) != size
        or not all(isinstance(n, int | float) and 0 <= n <= 1 for n in numbers)
    ):
        raise BadRecord(f"{kind} {numbers!a:.80}; expected {size} fractions from 0 to 1")
    if kind == "box" and not (numbers[0] <= numbers[2] and numbers[1] <= numbers[3]):
        raise BadRecord(f"box {list(numbers)}; expected left <= right and top <= bottom")
    return {"image": image, kind: [float(number) for number in numbers]}


class Page:
    """An interleaved record under construction: texts and images in reading order.

    An unavailable image takes no place in the record, which counts it in `missing_images`.

    Attributes:
        missing: Number of unavailable images, by class of reason.
    """

    def __init__(self):
        self._texts: list[str | None] = []
        self._images: list[bytes | None] = []
        self._urls: list[str | None] = []
        self.missing: Counter[str] = Counter()

    def add_text(self, text: str) -> None:
        self._add(text, None, None)

    def add_image(self, read: Callable[[], bytes], url: Any = None) -> None:
        """Adds the image that `read` returns; counts it as missing if that is empty or fails."""
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
        """True if there are no images and every text is blank."""
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
    """Returns the record of a page, or of each non-empty part, with counts of missing images.

    Raises:
        BadRecord: All pages are empty.
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
    """Builds page records from OBELICS' parallel lists, with a text or an image at each place.

    The page is cut at OBELICS' end-of-document marks; each non-empty part becomes a record. A place
    with neither text nor image is an image whose download failed.

    Args:
        read: Returns the bytes of the image that a value of `images` refers to.
        urls: The URL of each place, where known.
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
    """True for null, and for NaN, which pandas writes in its place."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_text(value: Any, what: str) -> str:
    """Returns the value if it is a string; raises BadRecord otherwise."""
    if not isinstance(value, str):
        raise _type_error(value, what, "a string")
    return value


def as_list(value: Any, what: str) -> list[Any]:
    """Returns the value if it is a list; raises BadRecord otherwise."""
    if not isinstance(value, list):
        raise _type_error(value, what, "a list")
    return value


def _type_error(value: Any, what: str, expected: str) -> BadRecord:
    there = f"no {what}" if value is None else f"{what}: a {type(value).__name__}"
    return BadRecord(f"{there}, expected {expected}")


def is_key(value: Any) -> bool:
    """True if a JSON value can serve as an id: a string or an integer."""
    return isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))


def known(**extras: Any) -> dict[str, str]:
    """Keeps the values that are strings or integers, as strings."""
    return {name: str(value) for name, value in extras.items() if is_key(value)}


def from_base64(text: Any) -> bytes:
    """Decodes a base64 string; raises BadRecord for anything else."""
    try:
        return base64.b64decode(as_text(text, "image"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRecord(f"an image that is not base64: {error}") from error
