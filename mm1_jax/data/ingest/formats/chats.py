"""Parsing that formats of conversations share: turns, boxes in texts, lines of recognized text."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mm1_jax.batch import Image, Record
from mm1_jax.data.grounding import FRACTIONS, THOUSANDTHS, Frame, padded_square, pixels, region
from mm1_jax.data.images import picture_size
from mm1_jax.data.readers.entries import Documents
from mm1_jax.data.readers.json_files import as_object
from mm1_jax.data.record_files import BOX, IMAGE, BadRecord
from mm1_jax.data.records import as_list, conversation_record, is_missing

Turns = list[tuple[str, Any, Any]]
Boxes = list[dict[str, Any]]

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_FRACTION = r"\s*((?:0|1)?\.\d+|0|1)\s*"
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_FRACTIONS = re.compile(rf"\[{_FRACTION},{_FRACTION},{_FRACTION},{_FRACTION}\]")
_INTERNVL = re.compile(r"(?:<ref>((?:(?!</?ref>).)*)</ref>\s*)?<box>([^<]*)</box>", re.DOTALL)
_QWEN = re.compile(
    rf'("bbox_2d"\s*:\s*)\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]'
    rf'|("point_2d"\s*:\s*)\[{_NUMBER},{_NUMBER}\]'
)
# Conventions of boxes in texts, as options name them.
BOX_TEXTS = ("none", "llava", "fractions", "internvl", "qwen")
_RECOGNIZED_TEXT = re.compile(r"^[ \t]*Reference OCR token:.*(?:\n|\Z)", re.MULTILINE)


@dataclass(frozen=True)
class LlavaEntries:
    """Makes records of entries with LLaVA's keys: `conversations` or `messages`, and `image`.

    Attributes:
        boxes: Convention of the boxes in the texts, one of `BOX_TEXTS`.
        ocr_tokens: False drops the lines `Reference OCR token: ...` of questions.
        source: The name of the dataset; None takes that of the entry.
    """

    boxes: str = "none"
    ocr_tokens: bool = True
    source: str | None = None

    def __post_init__(self):
        if self.boxes not in BOX_TEXTS:
            raise ValueError(f"boxes={self.boxes!r}; expected one of {', '.join(BOX_TEXTS)}")

    def record(
        self, entry: str, value: Mapping[str, Any], read: Callable[[Any], bytes]
    ) -> Record | Documents:
        """Returns the record of an entry; `read` returns the bytes of an image."""
        if not (is_missing(value.get("video")) and is_missing(value.get("videos"))):
            raise BadRecord("a conversation about a video")
        turns = said_turns(value, "messages" if "messages" in value else "conversations")
        names = first_of(value, "image", "images")
        names = [] if is_missing(names) else names if isinstance(names, list) else [names]
        images = [read(name) for name in names]
        counts = {}
        if not self.ocr_tokens:
            turns, num_lines = _without_recognized_text(turns)
            counts = {"ocr_token_lines": num_lines} if num_lines else {}
        turns, boxes = with_regions(turns, images, self.boxes, value)
        found = conversation_record(
            entry,
            images,
            turns,
            boxes=boxes,
            source_id=first_of(value, "id", "sample_id"),
            source=self.source or _source(value),
        )
        return counted(found, counts)


def counted(entry: Record | Documents, counts: Mapping[str, int]) -> Record | Documents:
    """Adds counts to those of an entry."""
    if not counts:
        return entry
    if not isinstance(entry, Documents):
        return Documents((entry,), dict(counts))
    return Documents(entry.records, entry.counts | dict(counts))


def first_of(value: Mapping[str, Any], *names: str) -> Any:
    """Returns the first of the values that is not missing."""
    return next((value[name] for name in names if not is_missing(value.get(name))), None)


def said_turns(value: Mapping[str, Any], name: str) -> Turns:
    """Parses the turns of a list: `{from, value}`, or `{role, content}` with an optional loss.

    Content may be a list of parts, of which those of type `image` become `<image>`.
    """
    listed = as_list(value.get(name), name)
    return [_turn(as_object(turn)) for turn in listed if not is_missing(turn)]


def _turn(turn: Mapping[str, Any]) -> tuple[str, Any, Any]:
    speaker = turn.get("role") if is_missing(turn.get("from")) else turn["from"]
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise BadRecord(f"a turn from {speaker!a:.80}; expected one of {', '.join(_ROLES)}")
    text = turn.get("content") if is_missing(turn.get("value")) else turn["value"]
    if isinstance(text, list):
        text = "\n".join(map(_part, text))
    return _ROLES[speaker], text, turn.get("loss")


def _part(part: Any) -> str:
    part = as_object(part)
    if part.get("type") in ("image", "image_url"):
        return IMAGE
    if not isinstance(part.get("text"), str):
        raise BadRecord(f"a part of type {part.get('type')!a:.80}; expected text or image")
    return part["text"]


def _source(value: Mapping[str, Any]) -> Any:
    about = value.get("metadata")
    named = about.get("dataset") if isinstance(about, dict) else None
    return named or first_of(value, "source", "data_source")


def _without_recognized_text(turns: Turns) -> tuple[Turns, int]:
    num_lines, left = 0, []
    for role, text, loss in turns:
        if role == "user" and isinstance(text, str):
            text, found = _RECOGNIZED_TEXT.subn("", text)
            text, num_lines = text.rstrip("\n") if found else text, num_lines + found
        left.append((role, text, loss))
    return left, num_lines


def size_of(image: bytes) -> tuple[int, int]:
    """Returns width and height of the upright picture; raises BadRecord if they are unreadable."""
    if (size := picture_size(Image(image))) is None:
        raise BadRecord("boxes need the size of the image, which cannot be read")
    return size


def with_regions(
    turns: Turns, images: Sequence[bytes], convention: str, about: Mapping[str, Any]
) -> tuple[Turns, Boxes]:
    """Replaces boxes and points in texts by `<box>` and `<point>`, and returns them in order.

    A box lies in the last image that is named before it. Conversations without images keep their
    numbers.

    Args:
        convention: One of `BOX_TEXTS`.
        about: The entry, in which Qwen's layout has `resized_width` and `resized_height`.
    """
    if convention == "none" or not images:
        return turns, []
    boxes: Boxes = []
    num_named = 0
    replaced: Turns = []
    for role, text, loss in turns:
        if isinstance(text, str):
            named_before = num_named

            def replace(match: re.Match, named_before: int = named_before) -> str:
                named = named_before + match.string.count(IMAGE, 0, match.start())
                image = min(max(named - 1, 0), len(images) - 1)
                return _REPLACE[convention](match, _Place(image, images[image], about, boxes))

            num_named += text.count(IMAGE)
            num_boxes = len(boxes)
            text = _PATTERNS[convention].sub(replace, text)
            if convention == "internvl":
                text = re.sub("</?ref>", "", text)
                if text.count(BOX) != len(boxes) - num_boxes:
                    raise BadRecord("a box without an end")
        replaced.append((role, text, loss))
    return replaced, boxes


class _Place(NamedTuple):
    """The place of a match: its image, the entry, and the boxes so far."""

    image: int
    data: bytes
    about: Mapping[str, Any]
    boxes: Boxes

    def mark(self, values: Sequence[Any], frame: Frame) -> str:
        """Adds a box or a point, and returns its mark."""
        found = region(values, frame)
        kind = "box" if len(found) == 4 else "point"
        self.boxes.append({"image": self.image, kind: list(found)})
        return f"<{kind}>"


def _fractions(match: re.Match, place: _Place) -> str:
    # A list of integers, such as one of a program, is no box.
    return place.mark(_floats(match.groups()), FRACTIONS) if "." in match[0] else match[0]


def _padded(match: re.Match, place: _Place) -> str:
    if "." not in match[0]:
        return match[0]
    return place.mark(_floats(match.groups()), padded_square(*size_of(place.data)))


def _internvl(match: re.Match, place: _Place) -> str:
    try:
        values = json.loads(match[2])
        values = values if isinstance(values[0], list) else [values]
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise BadRecord(f"a box that is not a list of numbers: {match[2]!a:.80}") from error
    marks = ", ".join(place.mark(box, THOUSANDTHS) for box in values)
    return marks if match[1] is None else f"{match[1]} {marks}"


def _qwen(match: re.Match, place: _Place) -> str:
    width, height = (
        _side(place.about.get(f"resized_{side}"), place.image) for side in ("width", "height")
    )
    key, *numbers = match.groups()[:5] if match[1] is not None else match.groups()[5:]
    return key + place.mark(_floats(numbers), pixels(width, height))


def _floats(numbers: Iterable[str]) -> list[float]:
    return [float(number) for number in numbers]


def _side(value: Any, image: int) -> int:
    side = value[image] if isinstance(value, list) and image < len(value) else value
    if not isinstance(side, int) or side < 1:
        raise BadRecord("boxes in pixels of the resized image without its size, resized_width")
    return side


_PATTERNS = {"llava": _FRACTIONS, "fractions": _FRACTIONS, "internvl": _INTERNVL, "qwen": _QWEN}
_REPLACE = {"llava": _padded, "fractions": _fractions, "internvl": _internvl, "qwen": _qwen}
