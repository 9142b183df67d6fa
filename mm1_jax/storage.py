"""Local files and folders: atomic writes, digests, and checks for files of another kind."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads a file that holds a JSON object; skips a byte order mark.

    Raises:
        ValueError: The file is not a JSON object, or repeats a name with different values.
    """
    try:
        # `loads` detects the encoding from the first bytes.
        content = json.loads(path.read_bytes(), object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(f"{path}: no JSON that can be read (nested too deeply)") from None
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a JSON object is expected, and it is {_kind(content)}")
    return content


def utf8(text: str) -> bytes:
    """Encodes text as UTF-8; a lone surrogate becomes its six-character JSON escape.

    JSON strings may hold lone surrogates, which UTF-8 cannot represent. With the escape, a JSON
    text keeps its meaning.
    """
    return text.encode("utf-8", "backslashreplace")


_END_BYTES = 4096


def raise_if_remote(name: str, path: str | Path) -> None:
    """Raises ValueError if `path` is in an object store, such as gs://, and not local."""
    # `Path` collapses the two slashes into one.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", str(path)):
        raise ValueError(
            f"{name}={path}: expected a local path; mount the store (gcsfuse, mountpoint-s3) or "
            "copy the files"
        )


def write_whole(path: Path, data: str | bytes) -> None:
    """Writes a file atomically: beside `path` first, then renamed to it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(utf8(data) if isinstance(data, str) else data)
    partial.replace(path)


GIT_LFS = b"version https://git-lfs"  # No valid file begins with it.
# First bytes of files that stand in for others, with a description for error messages.
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
    """Describes a stand-in for another file by its first 64 bytes; otherwise returns "".

    Call it only for files that could not be read: a valid file may begin with such bytes by chance.
    """
    head = head.lstrip().lower() if head.lstrip()[:1] == b"<" else head
    return next((said for start, said in _STAND_INS.items() if head.startswith(start)), "")


def contents_digest(folder: Path) -> str:
    """Digest of the names, the sizes, and the first and last bytes of the files in a folder."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_END_BYTES))
            file.seek(max(0, size - _END_BYTES))
            digest.update(file.read())
    return digest.hexdigest()


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Context with a new folder beside `folder`, which is renamed to `folder` at the end.

    If another process has created `folder` in the meantime, that one stays: its content is the
    same. Partial folders that killed processes left behind are removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    partial, lock = _locked_folder(folder)
    try:
        yield partial
        # mkdtemp makes the folder private; other users read this one.
        partial.chmod(0o755)
        if not folder.exists():
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)


def _locked_folder(folder: Path) -> tuple[Path, int]:
    """Creates a partial folder; returns it with a descriptor that locks it until closed."""
    while True:
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=_prefix(folder)))
        try:
            lock = os.open(partial, os.O_RDONLY)
        except FileNotFoundError:
            # Another process has removed it as stale.
            continue
        # On a file system without locks, no folder is ever removed as stale.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        # Another process may have removed it between the opening and the lock.
        with contextlib.suppress(FileNotFoundError):
            if partial.stat().st_ino == os.fstat(lock).st_ino:
                return partial, lock
        os.close(lock)


def _remove_stale(folder: Path) -> None:
    """Removes partial folders of `folder` that no live process has locked."""
    for partial in folder.parent.iterdir():
        if not partial.name.startswith(_prefix(folder)) or not partial.is_dir():
            continue
        with contextlib.suppress(OSError):
            lock = os.open(partial, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(partial, ignore_errors=True)
            finally:
                os.close(lock)


def _prefix(folder: Path) -> str:
    return f"{folder.name}.partial-"


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result and result[name] != value:
            raise ValueError(f"{name!r} is there twice, with different values")
        result[name] = value
    return result


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def user_cache() -> Path:
    """Returns the folder for what can be computed again, such as compiled programs."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "mm1_jax"
