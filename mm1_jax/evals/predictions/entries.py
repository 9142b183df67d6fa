"""Entries of prediction and annotation files, whose fields are checked as they are read."""

import ast
import io
import itertools
import json
import math
import re
import token
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mm1_jax.evals.predictions.files import read_file

# Keys of JSON objects under which annotations of some benchmarks hold their list of entries.
_LIST_KEYS = ("annotations", "data", "questions")
# Fields that identify an entry, in messages and to tell an entry from an object of entries.
_ID_FIELDS = ("question_id", "questionId", "image_id", "index", "pid", "id")
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
# The maximum number of field names in a message.
_MAX_NAMES = 20
# Floats above this cannot represent every integer.
_LARGEST_EXACT = 2**53
# The text that pandas and spreadsheets write for an integer in a column of numbers, such as "12.0".
_INTEGRAL = re.compile(r"([+-]?\d+)\.0+")


def is_missing(value: Any) -> bool:
    """Returns True if a value is null or NaN, which pandas writes for null."""
    return value is None or isinstance(value, float) and math.isnan(value)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _name_list(values: Mapping[str, Any]) -> str:
    names = ", ".join(list(values)[:_MAX_NAMES]) or "none"
    return names if len(values) <= _MAX_NAMES else f"{names} and {len(values) - _MAX_NAMES} more"


def shortened(value: Any) -> str:
    """Returns a value as text for a message, shortened."""
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."


@dataclass(frozen=True)
class Entry:
    """One record of a prediction or annotation file, whose fields are read by type.

    The methods take several names of a field and read the first one present. They raise ValueError
    if the field is missing or has another type.

    Attributes:
        values: The fields.
        where: The file and the position in it, for messages.
        hint: How to fix a missing field, for messages.
    """

    values: Mapping[str, Any] = field(repr=False)
    where: str
    hint: str = (
        "If the field is in another file, give that with --annotations; --list shows the layouts"
    )

    def has(self, *names: str) -> bool:
        return any(not is_missing(self.values.get(name)) for name in names)

    def get(self, *names: str, expected: str) -> Any:
        """Returns the first of these fields that is present and neither null nor NaN."""
        for name in names:
            if not is_missing(value := self.values.get(name)):
                return value
        if empty := [name for name in names if name in self.values]:
            raise ValueError(
                f"{self.where}, field {empty[0]!r}: expected {expected}, got "
                f"{self.values[empty[0]]!r}"
            )
        raise ValueError(
            f"{self.where}: no field {' or '.join(map(repr, names))}, which should be {expected}; "
            f"it has {_name_list(self.values)}. {self.hint}"
        )

    def text(self, *names: str, expected: str = "a text") -> str:
        value = self.get(*names, expected=expected)
        if not isinstance(value, str):
            raise self.error(names, expected, value)
        return value

    def key(self, *names: str) -> str:
        """Returns an id as text: 12, 12.0, "12", " 12" and "12.0" are one id, "012" is another."""
        expected = "a text or an integer"
        value = self.get(*names, expected=expected)
        if isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST_EXACT:
            value = int(value)
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise self.error(names, expected, value)
        key = str(value).strip()
        found = _INTEGRAL.fullmatch(key)
        return found[1] if found else key

    def integer(self, *names: str) -> int:
        value = self.get(*names, expected="an integer")
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}(\.0+)?", value.strip()):
            return int(float(value)) if "." in value else int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(names, "an integer", value)
        return value

    def number(self, *names: str) -> float:
        """Returns a finite number; in a table, numbers are texts."""
        value: Any = self.get(*names, expected="a number")
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                value = None
        if not is_number(value) or not math.isfinite(value):
            raise self.error(names, "a number", self.get(*names, expected="a number"))
        return float(value)

    def boolean(self, *names: str) -> bool:
        """Returns a boolean; in a table, booleans are texts. A missing field is False."""
        value = next((self.values[name] for name in names if self.has(name)), False)
        if isinstance(value, str) and value.strip().lower() in _BOOLEANS:
            return _BOOLEANS[value.strip().lower()]
        if value not in (0, 1, ""):
            raise self.error(names, "true or false", value)
        return bool(value)

    def texts(self, *names: str, expected: str = "a list of texts") -> list[str]:
        """Returns a list of texts, from texts or objects with an `answer`, or from a single text.

        A text that spells a list of texts in JSON or Python, as in tables, is parsed.
        """
        value = self.get(*names, expected=expected)
        if isinstance(value, str):
            spelled = literal(value, list)
            if spelled is None and value.strip()[:2] in ("['", '["'):
                raise self.error(names, f"{expected}, in JSON or Python with commas", value)
            if not (spelled and all(isinstance(item, str) for item in spelled)):
                return [value]
            value = spelled
        if isinstance(value, list) and value:
            items = [item.get("answer") if isinstance(item, dict) else item for item in value]
            texts = [item for item in items if isinstance(item, str)]
            if len(texts) == len(items):
                return texts
        raise self.error(names, expected, value)

    def error(self, names: Sequence[str], expected: str, value: Any) -> ValueError:
        name = next((name for name in names if self.has(name)), names[0])
        return ValueError(
            f"{self.where}, field {name!r}: expected {expected}, got {shortened(value)}"
        )


def literal(text: str, kind: type) -> Any:
    """Parses a list or dict that a text spells in JSON or Python; None if it does not."""
    text = text.strip()
    if (text[:1], text[-1:]) != (("[", "]") if kind is list else ("{", "}")):
        return None
    for parse in (json.loads, _python_literal):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError):
            continue
        if isinstance(value, kind):
            return value
    return None


def _python_literal(text: str) -> Any:
    """Parses a Python literal, but refuses adjacent texts without a comma.

    NumPy prints arrays that way, and Python would join the texts.
    """
    kinds = [each.type for each in tokenize.generate_tokens(io.StringIO(text).readline)]
    if (token.STRING, token.STRING) in itertools.pairwise(kinds):
        raise ValueError("two texts without a comma between")
    return ast.literal_eval(text)


def read_entries(path: Path) -> list[Entry]:
    """Returns the entries of a file, in order.

    The file holds a JSON list, JSON lines, a table, or a JSON object with a list under
    `annotations`, `data` or `questions`. The items of any other object are entries, too: the key is
    their `id`, and a value that is not an object is their `prediction`.
    """
    content = read_file(path)
    if isinstance(content, list) and len(content) == 1 and _list_in(content[0]) is not None:
        content = content[0]
    if isinstance(content, dict):
        content = _entries_in(content, is_line=path.suffix == ".jsonl")
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path}: holds no records; expected a list of them")
    return [_entry(values, f"{path}, record {i}") for i, values in enumerate(content, start=1)]


def _list_in(content: Any) -> list[Any] | None:
    if not isinstance(content, dict):
        return None
    return next((content[name] for name in _LIST_KEYS if isinstance(content.get(name), list)), None)


def _entries_in(content: dict[str, Any], is_line: bool) -> list[Any]:
    """Returns the entries of a JSON object: a list in it, the object itself, or its items."""
    if (values := _list_in(content)) is not None:
        return values
    is_by_id = bool(content) and all(isinstance(value, dict) for value in content.values())
    is_entry = any(isinstance(content.get(name), str | int) for name in _ID_FIELDS)
    if not is_by_id and (is_line or is_entry):
        return [content]
    return [
        {"id": key} | (value if isinstance(value, dict) else {"prediction": value})
        for key, value in content.items()
    ]


def _entry(values: Any, where: str) -> Entry:
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected an object, got {type(values).__name__}")
    name = next((name for name in _ID_FIELDS if name in values), None)
    return Entry(values, f"{where} ({name} {str(values[name])[:40]})" if name else where)


def by_key(entries: Sequence[Entry], *names: str) -> dict[str, Entry]:
    """Returns the entries by id. Raises ValueError if an id occurs twice."""
    found: dict[str, Entry] = {}
    for entry in entries:
        key = entry.key(*names)
        if key in found:
            raise ValueError(
                f"{entry.where}: {key!r} repeats the id at {found[key].where}; ids must be "
                "unique, so remove one of the two"
            )
        found[key] = entry
    return found
