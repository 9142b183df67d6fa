"""Records of prediction and annotation files: JSON, JSON lines, tables. Mistakes are named."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Where a JSON object keeps its records, in the annotations of one benchmark or another.
_LISTS = ("annotations", "data", "questions")
_SEPARATORS = {".tsv": "\t", ".csv": ","}
SUFFIXES = (".json", ".jsonl", *_SEPARATORS)


@dataclass(frozen=True)
class Record:
    """One record, whose fields are asked for by what they must be.

    Attributes:
        values: The fields.
        where: File and place, for messages.
        hint: What to do where a field is not there, for messages.
    """

    values: Mapping[str, Any] = field(repr=False)
    where: str
    hint: str = (
        "If the field is in another file, give that with --annotations; --list shows the layouts"
    )

    def has(self, *names: str) -> bool:
        return any(self.values.get(name) is not None for name in names)

    def get(self, *names: str, expected: str) -> Any:
        """The first of these fields that is there and not null."""
        for name in names:
            if self.values.get(name) is not None:
                return self.values[name]
        raise ValueError(
            f"{self.where}: no field {' or '.join(map(repr, names))}, which should be {expected}; "
            f"it has {', '.join(self.values) or 'none'}. {self.hint}"
        )

    def text(self, *names: str, expected: str = "a text") -> str:
        value = self.get(*names, expected=expected)
        if not isinstance(value, str):
            raise self.error(names, expected, value)
        return value

    def key(self, *names: str) -> str:
        """An id: a text, or an integer as text."""
        value = self.get(*names, expected="a text or an integer")
        if not isinstance(value, str | int):
            raise self.error(names, "a text or an integer", value)
        return str(value)

    def integer(self, *names: str) -> int:
        value = self.get(*names, expected="an integer")
        if isinstance(value, str) and re.fullmatch(r"-?\d+", value):
            return int(value)
        if not isinstance(value, int):
            raise self.error(names, "an integer", value)
        return value

    def texts(self, *names: str, expected: str = "a list of texts") -> list[str]:
        """A list of texts, or of objects with an `answer`; a text alone is a list of one."""
        value = self.get(*names, expected=expected)
        if isinstance(value, str):
            return [value]
        if isinstance(value, list) and value:
            items = [item.get("answer") if isinstance(item, dict) else item for item in value]
            texts = [item for item in items if isinstance(item, str)]
            if len(texts) == len(items):
                return texts
        raise self.error(names, expected, value)

    def error(self, names: Sequence[str], expected: str, value: Any) -> ValueError:
        name = next((name for name in names if self.values.get(name) is not None), names[0])
        shown = repr(value) if len(repr(value)) < 80 else f"{repr(value)[:77]}..."
        return ValueError(f"{self.where}, field {name!r}: expected {expected}, got {shown}")


def read_json(path: Path) -> Any:
    """The content of a JSON file, or the list of the lines of a `.jsonl` file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give a file") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    if path.suffix != ".jsonl":
        return _parsed(text, str(path))
    lines = enumerate(text.split("\n"), start=1)
    return [_parsed(line, f"{path}, line {number}") for number, line in lines if line.strip()]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error}); mend it, or make the file again") from error


def read_records(path: Path) -> list[Record]:
    """The records of a file, in order.

    A JSON list or the lines of a `.jsonl`; the list under `annotations`, `data` or `questions` of a
    JSON object; the values of any other object, whose keys become their `id`, a value that is no
    object as its `prediction`; the rows of a `.tsv` or `.csv` with a header.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a file whose name ends in {', '.join(SUFFIXES)}")
    if path.suffix in _SEPARATORS:
        with path.open(encoding="utf-8", newline="") as file:
            content: Any = list(csv.DictReader(file, delimiter=_SEPARATORS[path.suffix]))
    else:
        content = read_json(path)
    if isinstance(content, dict):
        content = next(
            (content[name] for name in _LISTS if isinstance(content.get(name), list)),
            [
                {"id": key} | (value if isinstance(value, dict) else {"prediction": value})
                for key, value in content.items()
            ],
        )
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path}: holds no records; expected a list of them")
    records = []
    for number, values in enumerate(content, start=1):
        where = f"{path}, record {number}"
        if not isinstance(values, dict):
            raise ValueError(f"{where}: expected an object, got {type(values).__name__}")
        names = ("question_id", "questionId", "image_id", "index", "pid", "id")
        name = next((name for name in names if name in values), None)
        records.append(Record(values, f"{where} ({name} {values[name]})" if name else where))
    return records


def by_key(records: Sequence[Record], *names: str) -> dict[str, Record]:
    """The records under their ids, each of which must occur once."""
    found: dict[str, Record] = {}
    for record in records:
        key = record.key(*names)
        if key in found:
            raise ValueError(
                f"{record.where}: {key!r} was there before, at {found[key].where}; an id must "
                "occur once, take one of the two out"
            )
        found[key] = record
    return found


def paired(
    predictions: Sequence[Record], annotations: Path | None, *names: str
) -> list[tuple[Record, Record]]:
    """Each prediction with the record that holds its reference: itself where no file has them.

    Args:
        names: The ids by which they belong together. Where predictions have none of them, they must
            be as many as the annotations, in the same order.

    Raises:
        ValueError: If a prediction has no annotation, or one of these no prediction.
    """
    if annotations is None:
        return [(record, record) for record in predictions]
    references = read_records(annotations)
    if not any(record.has(*names) for record in predictions):
        if len(predictions) != len(references):
            raise ValueError(
                f"{predictions[0].where}: there are {len(predictions)} predictions and "
                f"{len(references)} annotations in {annotations}; as the predictions have no "
                f"{' or '.join(names)}, they must be as many, in the same order"
            )
        return list(zip(predictions, references, strict=True))
    by_id, answered = by_key(references, *names), by_key(predictions, *names)
    for key, record in answered.items():
        if key not in by_id:
            raise ValueError(
                f"{record.where}: {annotations} has no annotation of {key!r}; give the annotations "
                "of the split that was asked"
            )
    if lacking := [key for key in by_id if key not in answered]:
        raise ValueError(
            f"{annotations}: {len(lacking)} of its {len(by_id)} records have no prediction, the "
            f"first {lacking[0]!r}; answer all, or give the annotations of those asked alone"
        )
    return [(record, by_id[key]) for key, record in answered.items()]
