"""Finds the files that a user named, reads them whole within a bound, and names their entries."""

import hashlib
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from mm1_jax.data.record_files import BadRecord

# No picture or document that a model reads is larger; what is says so instead of filling memory.
MAX_ENTRY_BYTES = 256 * 2**20


def source_files(source: Path, suffixes: Collection[str], expected: str) -> list[Path]:
    """The source itself, or the files below a folder, whose names end in one of the suffixes.

    Sorted by path, without hidden files and without following links to folders. Their names tell
    the entries of one from those of another (`entry_id`), so no two may have the same.

    Raises:
        ValueError: There are none, or two of one name; `expected` says in words what was sought.
    """
    found = [source] if source.is_file() else _below(source)
    files = [path for path in found if path.name.lower().endswith(tuple(suffixes))]
    if not files:
        problem = "nothing of the kind" if source.exists() else "no file or folder"
        raise ValueError(f"{source}: expected {expected}, found {problem}")
    by_name: dict[str, Path] = {}
    for path in files:
        other = by_name.setdefault(path.name, path)
        if other != path:
            raise ValueError(
                f"{other} and {path} have the same name, so that their records cannot be told "
                "apart; convert their folders one at a time"
            )
    return files


def documents_below(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The files below a folder that end so, sorted; they are known by their path in the folder."""
    return [path for path in _below(folder) if path.name.lower().endswith(tuple(suffixes))]


def files_key(files: Sequence[Path], folder: Path, version: int) -> str:
    """What an index of files goes by: another key where a name, a size or a time has changed.

    Args:
        files: In their order.
        folder: What their names start from.
        version: Of what the index holds.
    """
    stats = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
    facts = [[name, about.st_size, about.st_mtime_ns] for name, about in stats]
    return hashlib.blake2b(json.dumps([version, facts]).encode(), digest_size=12).hexdigest()


def _below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    try:
        return sorted(
            path
            # Folders that may not be read would be passed over otherwise.
            for parent, _, names in os.walk(folder, onerror=_raise)
            for name in names
            if not name.startswith(".") and (path := Path(parent, name)).is_file()
        )
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from error


def _raise(error: OSError) -> None:
    raise error


def entry_id(name: str | Path, place: int | str | None = None) -> str:
    """Names an entry by its file and its place there: `shard.jsonl:12`.

    Lines count from 1, as editors count; rows and elements of lists from 0.
    """
    name = name.name if isinstance(name, Path) else name
    return printable(name if place is None else f"{name}:{place}")


def printable(text: str) -> str:
    """The text without what has no UTF-8: names of files are any bytes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def read_whole(path: Path) -> bytes:
    """The content of a regular file; BadRecord where there is none, or one out of bounds."""
    try:
        # Anything else, a pipe say, could keep a reader waiting for ever.
        if not path.is_file():
            raise BadRecord("there is no such file")
        with path.open("rb") as file:
            data = file.read(MAX_ENTRY_BYTES + 1)
    except OSError as error:
        raise BadRecord(f"it cannot be read: {error.strerror}") from error
    if len(data) > MAX_ENTRY_BYTES:
        raise BadRecord(f"it has more than {MAX_ENTRY_BYTES} bytes")
    return data
