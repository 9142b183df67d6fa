"""JSON from untrusted files: JSON lines, and lists too long for memory, element by element.

The standard library parses the elements, so they are equal to those of a file parsed as a whole.
ijson 3.6 takes a third of the time, but rejects NaN, byte order marks and integers above 64 bits,
all of which occur in datasets, and turns a lone surrogate into "?".
"""

import codecs
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mm1_jax.data.readers.compressed import (
    MAX_LINE_BYTES,
    compressed,
    decode_text,
    lines,
    opened,
)
from mm1_jax.data.readers.entries import Rejected
from mm1_jax.data.readers.source_files import Unit, entry_id, source_files
from mm1_jax.data.record_files import BadRecord

# The errors of `json`: for syntax and integers of thousands of digits, for nesting, for size.
_JSON_ERRORS = (ValueError, RecursionError, MemoryError)
_CHUNK_BYTES = 2**20
_NUM_LOOKED_AT = 10
_NO_LIST = "a JSON object, expected a list of them"
# An error this close to the end of the window may be due to a token that continues after it.
_MAX_TOKEN = 16
_NUMBER_TAIL = re.compile(r"[0-9.eE+-]*")
_SPACE = re.compile(r"[ \t\n\r]*")
# Bytes that are not UTF-8, as the error handler "surrogateescape" writes them.
_NOT_UTF8 = re.compile("[\udc80-\udcff]")


def parse_json(data: bytes) -> Any:
    """Parses JSON; raises BadRecord if it is invalid or nested too deeply."""
    text = decode_text(data)
    try:
        return json.loads(text)
    except _JSON_ERRORS as error:
        raise BadRecord(f"not JSON: {error}") from error


def as_object(value: Any) -> dict[str, Any]:
    """Returns the value if it is a JSON object; raises BadRecord otherwise."""
    if not isinstance(value, dict):
        raise BadRecord(f"a {type(value).__name__}, expected a JSON object")
    return value


class Element(NamedTuple):
    """A value of a JSON file, and its place.

    Attributes:
        key: The key of the list or value in the file's object; None for a file that is a list.
        place: The index in the list; None for a value of the object that is not a list.
    """

    id: str
    key: str | None
    place: int | None
    value: Any


def stream_json(path: Path) -> Iterator[Element | Rejected]:
    """Yields the elements of a file that is a list, or an object of lists and other values.

    Only one element is in memory. Nothing after an element that is not JSON can be read; the last
    item is then a Rejected.
    """
    at = None
    try:
        with opened(path) as stream:
            cursor = _Cursor(stream)
            if cursor.take("["):
                for place in cursor.items("]"):
                    at = place
                    yield Element(entry_id(path, at), None, place, cursor.value())
            elif cursor.take("{"):
                for _ in cursor.items("}"):
                    at = None
                    key = cursor.value()
                    if not isinstance(key, str) or not cursor.take(":"):
                        raise BadRecord("not JSON: expected a key and a colon")
                    if not cursor.take("["):
                        yield Element(entry_id(path, key), key, None, cursor.value())
                        continue
                    for place in cursor.items("]"):
                        at = f"{key}:{place}"
                        yield Element(entry_id(path, at), key, place, cursor.value())
            else:
                raise BadRecord("neither a JSON list nor a JSON object")
            at = None
            if cursor.peek():
                raise BadRecord("not JSON: something follows the end")
    except BadRecord as error:
        yield Rejected(entry_id(path, at), f"{error}; what follows is not read")


def entries(path: Path) -> Iterator[tuple[str, Any] | Rejected]:
    """Yields the id and the value of each element of a JSON list, or each line of a JSONL file."""
    if ".jsonl" in path.name.lower():
        for item in lines(path):
            if isinstance(item, Rejected):
                yield item
                continue
            entry, line = item
            try:
                yield entry, parse_json(line)
            except BadRecord as error:
                yield Rejected(entry, str(error))
        return
    for element in stream_json(path):
        if isinstance(element, Rejected):
            yield element
        elif element.key is None:
            yield element.id, element.value
        else:
            yield Rejected(entry_id(path), _NO_LIST)
            return


def json_units(
    source: Path, is_wanted: Callable[[Any], bool], expected: str, follow_links: bool
) -> list[Unit]:
    """Returns the JSON files of a file or folder that may hold wanted entries, each as a unit.

    Args:
        expected: Description of the files, for the error.

    Raises:
        ValueError: There is no such file.
    """
    files = source_files(source, compressed(".json", ".jsonl"), expected, follow_links)
    units = [Unit(path) for path in files if is_one_wanted(entries(path), is_wanted)]
    if not units:
        raise ValueError(f"{source}: expected {expected}")
    return units


def is_one_wanted(
    items: Iterable[tuple[str, Any] | Rejected], is_wanted: Callable[[Any], bool]
) -> bool:
    """True if one of the first entries is wanted, or if none of them can be read."""
    found = list(itertools.islice(items, _NUM_LOOKED_AT))
    values = [item[1] for item in found if not isinstance(item, Rejected)]
    if values:
        return any(map(is_wanted, values))
    return any(isinstance(item, Rejected) and item.reason != _NO_LIST for item in found)


class _Cursor:
    """A position in a stream of JSON text; only a window of the stream is in memory."""

    def __init__(self, stream: io.BufferedIOBase):
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._json = json.JSONDecoder()
        self._window = ""
        self._at = 0
        self._is_end = False

    def peek(self) -> str:
        """Returns the next character that is not whitespace; an empty string at the end."""
        while True:
            match = _SPACE.match(self._window, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._window):
                return self._window[self._at]
            if self._is_end:
                return ""
            self._more(_CHUNK_BYTES)

    def take(self, character: str) -> bool:
        """Skips the character if it is the next one, and returns whether it was."""
        is_next = self.peek() == character
        self._at += is_next
        return is_next

    def items(self, end: str) -> Iterator[int]:
        """Yields the index of each item between commas, with the cursor before it, up to `end`."""
        if self.take(end):
            return
        for place in itertools.count():
            yield place
            if self.take(end):
                return
            if not self.take(","):
                raise BadRecord(f"not JSON: expected a comma or {end!r}")

    def value(self) -> Any:
        """Reads the next JSON value."""
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._window, self._at)
            except json.JSONDecodeError as error:
                self._extend_window_after(error)
            except _JSON_ERRORS as error:
                raise BadRecord(f"not JSON: {error}") from error
            else:
                # A number may continue after the window.
                tail = _NUMBER_TAIL.match(self._window, end)
                if self._is_end or tail is None or tail.end() < len(self._window):
                    break
                self._more(_CHUNK_BYTES)
        text = self._window[self._at : end]
        self._at = end
        if not text.isascii() and _NOT_UTF8.search(text):
            raise BadRecord("not UTF-8")
        return value

    def _extend_window_after(self, error: json.JSONDecodeError) -> None:
        """Extends the window if its end may have caused the error; raises BadRecord otherwise."""
        is_torn = (
            error.msg.startswith("Unterminated string")
            or error.pos >= len(self._window) - _MAX_TOKEN
        )
        if self._is_end or not is_torn:
            raise BadRecord(f"not JSON: {error.msg}")
        size = len(self._window) - self._at
        if size > MAX_LINE_BYTES:
            raise BadRecord(f"an element of more than {MAX_LINE_BYTES} characters")
        # Doubles the window each time, so repeated parsing costs no more than parsing once.
        self._more(max(_CHUNK_BYTES, size))

    def _more(self, num_bytes: int) -> None:
        data = self._stream.read(num_bytes)
        self._is_end = not data
        text = self._decoder.decode(data, final=self._is_end)
        self._window = self._window[self._at :] + text
        self._at = 0
