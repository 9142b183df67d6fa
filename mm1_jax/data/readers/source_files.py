"""Finds the files that a user named, reads them whole within a bound, and names their entries."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mm1_jax.data.record_files import BadRecord
from mm1_jax.storage import GIT_LFS, stand_in

# No picture or document that a model reads is larger; what is says so instead of filling memory.
MAX_ENTRY_BYTES = 256 * 2**20
# Files of a folder that are looked at to explain why it holds nothing.
_MOST_LOOKED_AT = 100
# Folders of attributes, in zips of macOS and where a tar was unpacked by a program that knows none.
_OF_ARCHIVERS = re.compile(r"__MACOSX|PaxHeaders?(\..*)?", re.DOTALL)


@dataclass(frozen=True)
class Unit:
    """A file, or a part of it that can be sought, which one process reads from start to end.

    Attributes:
        path: The file.
        part: Which part of the file, for formats whose files have parts (row groups of Parquet).
    """

    path: Path
    part: int = 0


def source_files(
    source: Path, suffixes: Collection[str], expected: str, follow_links: bool = False
) -> list[Path]:
    """The source itself, or the files below a folder, whose names end in one of the suffixes.

    Sorted by path, without hidden files. Their names tell the entries of one from those of another
    (`entry_id`), so no two may have the same.

    Raises:
        ValueError: There are none, or two of one name; `expected` says in words what was sought.
    """
    found = [source] if source.is_file() else _below(source, follow_links)
    files = [path for path in found if path.name.lower().endswith(tuple(suffixes))]
    if not files:
        problem = "nothing of the kind" if source.exists() else "no file or folder"
        if found and source.is_dir():
            problem += f" but {', '.join(path.name for path in found[:3])}" + ", ..." * (
                len(found) > 3
            )
        if not follow_links and (links := links_not_followed(source)):
            problem += f"; {links}. --option.follow_links=true follows them"
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


def documents_below(
    folder: Path, suffixes: Collection[str], follow_links: bool = False
) -> list[Path]:
    """The files below a folder that end so, sorted; they are known by their path in the folder."""
    found = _below(folder, follow_links)
    return [path for path in found if path.name.lower().endswith(tuple(suffixes))]


def links_not_followed(folder: Path) -> str:
    """Names the links to folders, and those to nothing, that are skipped below a folder; or ""."""
    links = sorted(
        path
        for parent, folders, names in os.walk(folder)
        for name in (*folders, *names)
        if (path := Path(parent, name)).is_symlink() and not path.is_file()
    )
    if not links:
        return ""
    named = ", ".join(map(str, links[:3]))
    return f"links to folders, or to nothing, that are not followed: {len(links)}, such as {named}"


def files_key(files: Sequence[Path], folder: Path, version: int) -> str:
    """Names the index of some files: another key where a name, a size or a time has changed.

    Args:
        files: In their order.
        folder: What their names start from.
        version: Of what the index holds.
    """
    stats = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
    facts = [[name, about.st_size, about.st_mtime_ns] for name, about in stats]
    return hashlib.blake2b(json.dumps([version, facts]).encode(), digest_size=12).hexdigest()


def _below(folder: Path, follow_links: bool = False) -> list[Path]:
    if not folder.is_dir():
        return []
    try:
        return sorted(
            path
            for parent, names in _walk(folder, follow_links)
            for name in names
            if not name.startswith(".") and (path := Path(parent, name)).is_file()
        )
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from error


def _walk(folder: Path, follow_links: bool) -> Iterator[tuple[str, list[str]]]:
    """The folders below one, and the names of their files; each folder once, also in a circle."""
    seen = {os.path.realpath(folder)}
    # Folders that may not be read would be passed over otherwise.
    for parent, folders, names in os.walk(folder, onerror=_raise, followlinks=follow_links):
        yield parent, names
        if follow_links:
            paths = {name: os.path.join(parent, name) for name in folders}
            # By their own names, where a link leads to one of them.
            folders.sort(key=lambda name: (os.path.islink(paths[name]), name))
            folders[:] = [name for name in folders if _is_new(paths[name], seen)]


def _is_new(folder: str, seen: set[str]) -> bool:
    path = os.path.realpath(folder)
    is_new = path not in seen
    seen.add(path)
    return is_new


def _raise(error: OSError) -> None:
    raise error


def is_hidden(name: str) -> bool:
    """Tells if the system that packed an archive added a file: `._a.jpg`, `.DS_Store`."""
    return any(
        (part.startswith(".") and part not in (".", "..")) or _OF_ARCHIVERS.fullmatch(part)
        for part in name.split("/")
    )


def entry_id(name: str | Path, place: int | str | None = None) -> str:
    """Names an entry by its file and its place there: `shard.jsonl:12`.

    Lines count from 1, as editors count; rows and elements of lists from 0.
    """
    name = name.name if isinstance(name, Path) else name
    return printable(name if place is None else f"{name}:{place}")


def printable(text: str) -> str:
    """The text without what has no UTF-8: names of files are any bytes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def git_lfs_pointer(source: Path) -> str:
    """Names a file that is a pointer of Git LFS, of the first that are there; else ""."""
    found = [source] if source.is_file() else _below(source)[:_MOST_LOOKED_AT]
    for path in found:
        with contextlib.suppress(OSError), path.open("rb") as file:
            if (head := file.read(64)).startswith(GIT_LFS):
                return f"{path} is {stand_in(head)}"
    return ""


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
    if data.startswith(GIT_LFS):
        raise BadRecord(stand_in(data[:64]))
    if len(data) > MAX_ENTRY_BYTES:
        raise BadRecord(f"it has more than {MAX_ENTRY_BYTES} bytes")
    return data
