"""Parquet of PixMo: captions, questions, points and documents, with images by URL or in the row."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from mm1_jax.batch import Record
from mm1_jax.data.grounding import PERCENT, region
from mm1_jax.data.ingest.formats.base import Format
from mm1_jax.data.ingest.formats.chats import Boxes, Turns, said_turns
from mm1_jax.data.ingest.formats.questions import DESCRIBE
from mm1_jax.data.readers.entries import Documents, Entry
from mm1_jax.data.readers.image_files import ImageFolder, ImageSearch, stored_image
from mm1_jax.data.readers.json_files import as_object
from mm1_jax.data.readers.parquet import missing_column, row_group_units, rows
from mm1_jax.data.readers.source_files import Unit
from mm1_jax.data.readers.url_index import url_map, url_map_path
from mm1_jax.data.record_files import POINT, BadRecord, RecordKind
from mm1_jax.data.records import as_list, as_text, conversation_record, is_missing, records_of

_POINT_PROMPT = 'Point to "{label}".'
_NO_POINTS = "There are none."
# Columns that only one of the datasets has; the first that a file has decides.
_LAYOUTS = {
    "points": "pixmo_points",
    "messages": "pixmo_cap_qa",
    "questions": "pixmo_docs",
    "caption": "pixmo_cap",
    "question": "pixmo_ask",
}
_OTHERS = ("answer", "label", "image", "image_url", "image_sha256", "id")


class Pixmo(Format):
    """Conversations, one per row, of PixMo's cap, ask, cap-qa, points or docs.

    Points, which are in percent, become `<point>`. Images are found by the SHA-256 of the URL or of
    the image, as the name of a file with any extension, or by URL.

    Args:
        images: A folder of images named by a SHA-256, one with `url_to_file.json`, or one of tar
            shards of img2dataset. Defaults to the folder of the Parquet file.
        prompt: The question of captions, and of points, in which `{label}` is the name of what to
            point to.
        check_sha: False accepts images that differ from those that were annotated, such as
            re-encoded ones. Images in tar shards are never compared.
    """

    name = "pixmo"
    kind = RecordKind.CONVERSATIONS

    def __init__(
        self,
        *,
        images: str | Path | None = None,
        prompt: str | None = None,
        check_sha: bool = True,
    ):
        self._images = None if images is None else Path(images)
        self._prompt = prompt
        self._check_sha = check_sha

    def units(self, source: Path) -> list[Unit]:
        return row_group_units(source, _choose, "Parquet of PixMo", self.follow_links)

    def read(self, unit: Unit) -> Iterator[Entry]:
        folder = self._images or unit.path.parent
        return records_of(rows(unit, _choose), lambda entry, row: self._record(entry, row, folder))

    def _record(self, entry: str, row: dict[str, Any], folder: Path) -> Record | Documents:
        layout = next(column for column in _LAYOUTS if column in row)
        turns, boxes = self._turns(layout, row)
        return conversation_record(
            entry,
            [self._image(row, folder)],
            turns,
            boxes=boxes,
            source=_LAYOUTS[layout],
            source_id=row.get("id"),
        )

    def _turns(self, layout: str, row: dict[str, Any]) -> tuple[Turns, Boxes]:
        if layout == "caption":
            return _pairs([(self._prompt or DESCRIBE, row["caption"])]), []
        if layout == "question":
            return _pairs([(row["question"], row.get("answer"))]), []
        if layout == "questions":
            return _pairs(_asked(row["questions"])), []
        if layout == "messages":
            said = as_list(row["messages"], "messages")
            if any(isinstance(turn, dict) for turn in said):
                return said_turns(row, "messages"), []
            if len(said) % 2:
                raise BadRecord(f"{len(said)} messages, expected questions and answers in turn")
            return _pairs(list(zip(said[::2], said[1::2], strict=True))), []
        points = [] if is_missing(row["points"]) else as_list(row["points"], "points")
        places = [as_object(point) for point in points]
        boxes: Boxes = [
            {"image": 0, "point": list(region((place.get("x"), place.get("y")), PERCENT))}
            for place in places
        ]
        question = (self._prompt or _POINT_PROMPT).replace(
            "{label}", as_text(row.get("label"), "label")
        )
        answer = ", ".join([POINT] * len(boxes)) or _NO_POINTS
        return _pairs([(question, answer)]), boxes

    def _image(self, row: dict[str, Any], folder: Path) -> bytes:
        if not is_missing(row.get("image")):
            return stored_image(row["image"], ImageFolder(folder, self.follow_links))
        url, sha = row.get("image_url"), row.get("image_sha256")
        names = [] if not isinstance(url, str) else [_sha256(url.encode("utf-8", "surrogatepass"))]
        names += [sha] if isinstance(sha, str) else []
        if not names:
            raise BadRecord("no image: neither image_url nor image_sha256")
        by_url = url_map_path(folder, self.follow_links)
        if isinstance(url, str) and by_url.exists():
            data = url_map(by_url, self.follow_links).read(url)
        else:
            data = ImageSearch([ImageFolder(folder, self.follow_links)]).read(*names)
        is_compared = self._check_sha and isinstance(sha, str) and not by_url.is_dir()
        if is_compared and _sha256(data) != sha:
            raise BadRecord(
                "the image differs from the annotated one: its SHA-256 is another"
                "; --option.check_sha=false accepts it"
            )
        return data


def _asked(questions: Any) -> list[tuple[Any, Any]]:
    """Returns the pairs of a map of two lists, or of a list of maps."""
    if isinstance(questions, list):
        listed = [as_object(one) for one in questions]
        return [(one.get("question"), one.get("answer")) for one in listed]
    lists = as_object(questions)
    asked, answers = (as_list(lists.get(name), name) for name in ("question", "answer"))
    if len(asked) != len(answers):
        raise BadRecord(f"{len(asked)} questions beside {len(answers)} answers")
    return list(zip(asked, answers, strict=True))


def _pairs(pairs: list[tuple[Any, Any]]) -> Turns:
    roles = ("user", "assistant")
    return [(role, text, None) for pair in pairs for role, text in zip(roles, pair, strict=True)]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _choose(schema: pa.Schema) -> list[str]:
    if not set(_LAYOUTS) & set(schema.names):
        raise missing_column(tuple(_LAYOUTS), schema)
    return [name for name in (*_LAYOUTS, *_OTHERS) if name in schema.names]
