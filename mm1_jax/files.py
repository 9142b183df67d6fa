"""Files and folders that are there whole or not at all, and files that are not what they seem."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def utf8(text: str) -> bytes:
    """Returns the text in UTF-8, which has no half of a surrogate pair, though JSON may hold one.

    Such a half becomes the six characters that JSON escapes it with, so that a JSON text keeps its
    meaning.
    """
    return text.encode("utf-8", "backslashreplace")


def write_whole(path: Path, data: str | bytes) -> None:
    """Writes a file beside `path`, and gives it that name when it is complete."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(utf8(data) if isinstance(data, str) else data)
    partial.replace(path)


GIT_LFS = b"version https://git-lfs"  # No good file begins with it.
# The first bytes of files that stand in place of others, and what to say of them.
_STAND_INS = {
    GIT_LFS: "a pointer of Git LFS in place of the file; `git lfs pull` in its "
    "repository fetches that",
    b"\x1f\x8b": "compressed by gzip; unpack it first",
    b"BZh": "compressed by bzip2; unpack it first",
    b"\xfd7zXZ\0": "compressed by xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by Zstandard; unpack it first",
    b"PK\x03\x04": "a zip; unpack it first",
    b"<!doctype html": "a page of HTML, which servers send in place of a file",
    b"<html": "a page of HTML, which servers send in place of a file",
}


def stand_in(head: bytes) -> str:
    """Describes a file by its first 64 bytes, if it stands in place of another; otherwise "".

    For files that could not be read: a good one may begin with such bytes by chance.
    """
    head = head.lstrip().lower() if head.lstrip()[:1] == b"<" else head
    return next((said for start, said in _STAND_INS.items() if head.startswith(start)), "")


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to write into, which gets that name when the block ends.

    Another process may be faster, with the same content: then its folder stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}.partial-"))
    try:
        yield partial
        # mkdtemp's folder is its owner's alone; others read what is in this one.
        partial.chmod(0o755)
        if not folder.exists():
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
