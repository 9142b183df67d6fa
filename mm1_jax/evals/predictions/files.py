"""Reads JSON, JSON lines and tables; the content decides, not the file name.

Files may be UTF-8, UTF-16 or UTF-32, with or without a byte order mark, and may be gzipped.
"""

import csv
import gzip
import io
import json
import sys
import zlib
from pathlib import Path
from typing import Any

SUFFIXES = (".json", ".jsonl", ".tsv", ".csv")
_JSON_SUFFIXES = (".json", ".jsonl")
_TAB, _COMMA, _SEMICOLON = "\t", ",", ";"


def read_file(path: Path) -> Any:
    """Returns the JSON value of a file, the list of its JSON lines, or the list of its table rows.

    Raises:
        ValueError: The file cannot be read; the message names the file and, if known, the line.
    """
    text = read_text(path)
    start = text.lstrip()
    if not start:
        raise ValueError(f"{path}: holds no records; expected a list of them")
    header = start.split("\n", 1)[0]
    is_header = not set("{}[]:") & set(header) and {_TAB, _COMMA} & set(header)
    if start[0] in "[{" or path.suffix in _JSON_SUFFIXES and not is_header:
        return _json(text, path)
    return _rows(text, path)


def read_text(path: Path) -> str:
    """Returns the text of a file without a byte order mark. Raises ValueError if it has no text."""
    try:
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: cannot be read ({reason}); give a file") from error
    if data.startswith(b"PK\x03\x04"):
        raise ValueError(f"{path}: a ZIP archive, as .xlsx files are; save the table as .csv")
    # The standard library's rule for JSON also fits tables: a byte order mark, or zero bytes.
    encoding = json.detect_encoding(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.upper().removesuffix("-SIG")
        raise ValueError(f"{path}: not {name} text ({error}); save it as UTF-8") from error


def _json(text: str, path: Path) -> Any:
    try:
        return _parsed(text, str(path))
    except _NotJson as error:
        if not error.is_more:
            raise
    lines = enumerate(text.split("\n"), start=1)
    return [_parsed(line, f"{path}, line {number}", 0) for number, line in lines if line.strip()]


class _NotJson(ValueError):
    """Says where a text is not JSON.

    `is_more` is True if the text continues after a complete value, as JSON lines do.
    """

    def __init__(self, message: str, is_more: bool):
        super().__init__(message)
        self.is_more = is_more


def _parsed(text: str, where: str, line: int | None = None) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        if line is None:
            where = f"{where}, line {error.lineno}"
        message = f"{where}: not JSON ({error}); fix it, or write the file again"
        raise _NotJson(message, error.msg == "Extra data") from error
    except RecursionError as error:
        raise ValueError(f"{where}: JSON that is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key {repeated!r} twice; remove one of the two")
    return found


def _rows(text: str, path: Path) -> list[dict[str, str]]:
    """Reads a table with a header, whose fields are separated by tabs, commas or semicolons."""
    text = text.lstrip("\r\n")
    header_line = text.split("\n", 1)[0]
    order = (_COMMA, _TAB) if path.suffix == ".csv" else (_TAB, _COMMA)
    separator = next((mark for mark in (*order, _SEMICOLON) if mark in header_line), order[0])
    # Pictures in base64 exceed the default limit of the csv module.
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[dict[str, str]] = []
    header: list[str] | None = None
    try:
        for row in reader:
            if header is None:
                header = [name.strip() for name in row]
                if repeated := [name for name in header if name and header.count(name) > 1]:
                    raise ValueError(f"{path}: the header has the column {repeated[0]!r} twice")
                continue
            # A blank line is not a row, but a quoted empty cell of a single column is.
            if not row or len(header) > 1 and not any(cell.strip() for cell in row):
                continue
            if len(row) < len(header) or any(row[len(header) :]):
                raise ValueError(
                    f"{path}, line {reader.line_num}: has {len(row)} fields, but the header has "
                    f"{len(header)}; quote fields that contain {separator!r}, or write JSON"
                )
            rows.append(dict(zip(header, row, strict=False)))
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: not a table ({error}); double the quotes inside "
            "quoted fields, or write JSON"
        ) from error
    return rows
