"""Reads the members of a tar file by their headers. Nothing is ever extracted to disk.

Only regular files are members. The parser is our own because files may be hostile: the parser of
the standard library stops silently at a damaged header, accepts negative sizes, expands sparse
files of any size, and searches headers with regular expressions that may never finish.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mm1_jax.data.readers.entries import HIDDEN, Documents, Rejected
from mm1_jax.data.readers.source_files import (
    MAX_ENTRY_BYTES,
    entry_id,
    is_hidden,
    printable,
)
from mm1_jax.data.record_files import BadRecord
from mm1_jax.storage import stand_in

_BLOCK = 512
_FILES = (b"0", b"\0", b"7")
_DIRECTORY, _SPARSE = b"5", b"S"
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    _SPARSE: "a sparse file",
}
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
# Entries that describe the entry after them; "g" describes all entries, but nothing that is read
# here.
_LONG_NAME, _EXTENSION = b"L", b"x"
_EXTENSIONS = (_LONG_NAME, _EXTENSION, b"K", b"g")
# Extensions hold a name and a few numbers.
_MAX_EXTENSION_BYTES = 2**20


class Member(NamedTuple):
    """A file in a tar file: its name, and the offset and size of its bytes."""

    name: str
    offset: int
    size: int


def members(file: io.BufferedIOBase, path: Path) -> Iterator[Member | Rejected | Documents]:
    """Yields the files of the open tar file at `path` in order, and HIDDEN for each hidden file.

    Folders are skipped. Nothing after damage can be read; the last item is then a Rejected.
    """
    is_tar = False
    try:
        for kind, member in _entries(file):
            is_tar = True
            if kind != _DIRECTORY and is_hidden(member.name):
                yield HIDDEN
            elif kind in _FILES and not member.name.endswith("/"):
                yield member
            elif kind not in (_DIRECTORY, *_FILES):
                reason = _REFUSED.get(kind, f"an entry of type {kind!a}")
                yield Rejected(entry_id(path, member.name), f"{reason}, expected a file")
    except (BadRecord, OSError) as error:
        problem = "" if is_tar else _stand_in(file)
        yield Rejected(entry_id(path), problem or f"tar: {error}; what follows is not read")


def _stand_in(file: io.BufferedIOBase) -> str:
    with contextlib.suppress(OSError):
        file.seek(0)
        return stand_in(file.read(64))
    return ""


def _entries(file: io.BufferedIOBase) -> Iterator[tuple[bytes, Member]]:
    """Yields all entries with their types, after applying the extensions before them."""
    end = file.seek(0, os.SEEK_END)
    at, is_closed, extended = 0, False, _ExtendedHeader()
    while at < end:
        header = _read(file, at, _BLOCK, end)
        at += _BLOCK
        # Concatenated tar files continue after the closing blocks of the first one.
        is_closed = not header.strip(b"\0")
        if is_closed:
            continue
        _check(header)
        kind = header[156:157]
        size = 0 if kind in _WITHOUT_DATA else _number(header[124:136])
        if kind in _EXTENSIONS:
            if size > _MAX_EXTENSION_BYTES:
                raise BadRecord(f"at byte {at}, a header of {size} bytes")
            extended = _extend(kind, _read(file, at, size, end), extended)
        else:
            if kind == _SPARSE:
                at = _after_map(file, at, header, end)
            size = size if extended.size is None or kind in _WITHOUT_DATA else extended.size
            if size > end - at:
                raise BadRecord(f"at byte {at}, the file ends inside an entry of {size} bytes")
            name = _name(header) if extended.name is None else extended.name
            yield _SPARSE if extended.is_sparse else kind, Member(name, at, size)
            extended = _ExtendedHeader()
        at += -(-size // _BLOCK) * _BLOCK
    if not is_closed:
        raise BadRecord("the file ends without its closing blocks, so it may be cut short")


class _ExtendedHeader(NamedTuple):
    """Properties that extensions set for the entry after them."""

    name: str | None = None
    size: int | None = None
    is_sparse: bool = False


def _extend(kind: bytes, data: bytes, before: _ExtendedHeader) -> _ExtendedHeader:
    if kind == _LONG_NAME:
        return before._replace(name=_text(data))
    if kind != _EXTENSION:
        return before
    fields = _fields(data)
    return _ExtendedHeader(
        name=_text(fields[b"path"]) if b"path" in fields else before.name,
        size=_decimal(fields[b"size"]) if b"size" in fields else before.size,
        is_sparse=any(field.startswith(b"GNU.sparse.") for field in fields),
    )


def read_member(file: io.BufferedIOBase, member: Member) -> bytes:
    """Returns the bytes of a member of an open tar file."""
    if member.size > MAX_ENTRY_BYTES:
        raise BadRecord(f"it has {member.size} bytes, more than {MAX_ENTRY_BYTES}")
    try:
        return _read(file, member.offset, member.size, member.offset + member.size)
    except OSError as error:
        raise BadRecord(f"it cannot be read: {error.strerror}") from error


def _read(file: io.BufferedIOBase, at: int, num_bytes: int, end: int) -> bytes:
    file.seek(at)
    data = file.read(num_bytes) if at + num_bytes <= end else b""
    if len(data) != num_bytes:
        raise BadRecord("the file is cut short")
    return data


def _check(header: bytes) -> None:
    """Raises BadRecord if the checksum of the header is wrong."""
    summed = header[:148] + b" " * 8 + header[156:]
    excess = _number(header[148:156]) - sum(summed)
    # Some programs sum signed bytes.
    if excess and excess != -256 * sum(byte > 127 for byte in summed):
        raise BadRecord("no header where one is expected")


def _number(field: bytes) -> int:
    """Parses octal digits, or a large binary number marked by its first bit."""
    if field[0] & 0x80:
        if field[0] != 0x80:
            raise BadRecord("a negative number in a header")
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0")[0].strip() or b"0"
    if digits.strip(b"01234567"):
        raise BadRecord("no number where a header has one")
    return int(digits, 8)


def _decimal(field: bytes) -> int:
    # No disk has as many bytes as a number of more than 20 digits.
    if not field.isdigit() or len(field) > 20:
        raise BadRecord("no number where a header has one")
    return int(field)


def _name(header: bytes) -> str:
    name, prefix = header[:100], header[345:500]
    # GNU's layout, with a space after "ustar", has times in place of the prefix.
    has_prefix = header[257:263] == b"ustar\0"
    return _text(prefix) + "/" + _text(name) if has_prefix and prefix[0] else _text(name)


def _text(field: bytes) -> str:
    return printable(field.split(b"\0")[0].decode("utf-8", "surrogateescape"))


def _fields(data: bytes) -> dict[bytes, bytes]:
    """Parses the `size key=value` lines of an extended header."""
    fields: dict[bytes, bytes] = {}
    at = 0
    while at < len(data) and data[at]:
        digits, space, _ = data[at : at + 20].partition(b" ")
        end = at + _decimal(digits) if space else at
        key, equals, value = data[at + len(digits) + 1 : end - 1].partition(b"=")
        if not equals or not at < end <= len(data):
            raise BadRecord("a damaged header")
        fields[key] = value
        at = end
    return fields


def _after_map(file: io.BufferedIOBase, at: int, header: bytes, end: int) -> int:
    """Returns the offset of the data of a sparse file, after the blocks that map it."""
    has_more = header[482]
    while has_more:
        has_more = _read(file, at, _BLOCK, end)[504]
        at += _BLOCK
    return at
