"""Finds the files that a user named, reads them within a size limit, and names their entries."""

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

# No image or document that a model reads is larger. Larger files are rejected before they fill
# memory.
MAX_ENTRY_BYTES = 256 * 2**20
# Files that are inspected to explain why a folder holds no data.
_MAX_INSPECTED = 100
# Folders of file attributes: from zips of macOS, and from tars whose unpacker ignores attributes.
_ARCHIVER_FOLDERS = re.compile(r"__MACOSX|PaxHeaders?(\..*)?", re.DOTALL)


@dataclass(frozen=True)
class Unit:
    """A file, or a seekable part of it, that one process reads from start to end.

    Attributes:
        path: The file.
        part: The number of the part, for formats whose files have parts (row groups of Parquet).
    """

    path: Path
    part: int = 0


def source_files(
    source: Path, suffixes: Collection[str], expected: str, follow_links: bool = False
) -> list[Path]:
    """Returns the source itself, or the files below a folder, with one of the suffixes.

    Files are sorted by path, without hidden ones. Ids of entries begin with the name of the file
    (`entry_id`), so no two files may have the same name.

    Args:
        expected: Describes the files in the error message.

    Raises:
        ValueError: There are no such files, or two of them have the same name.
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
    """Returns the files below a folder with one of the suffixes, sorted; their names may repeat."""
    found = _below(folder, follow_links)
    return [path for path in found if path.name.lower().endswith(tuple(suffixes))]


def links_not_followed(folder: Path) -> str:
    """Describes the skipped links below a folder, to folders or to nothing; "" if there is none."""
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
    """Returns the cache key of an index of files, which depends on their names, sizes and times.

    Args:
        files: The files in order.
        folder: The folder that their names are relative to.
        version: The version of the format of the index.
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
    """Yields the folders below one and their file names; each folder once, even in a link cycle."""
    seen = {os.path.realpath(folder)}
    # Otherwise, unreadable folders would be skipped silently.
    for parent, folders, names in os.walk(folder, onerror=_raise, followlinks=follow_links):
        yield parent, names
        if follow_links:
            paths = {name: os.path.join(parent, name) for name in folders}
            # Real folders first, so that they are visited by their own names.
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
    """True for files that packing programs add to an archive: `._a.jpg`, `.DS_Store`."""
    return any(
        (part.startswith(".") and part not in (".", "..")) or _ARCHIVER_FOLDERS.fullmatch(part)
        for part in name.split("/")
    )


def entry_id(name: str | Path, place: int | str | None = None) -> str:
    """Returns the id of an entry: the name of its file and its place there, `shard.jsonl:12`.

    Lines count from 1, as editors count; rows and elements of lists from 0.
    """
    name = name.name if isinstance(name, Path) else name
    return printable(name if place is None else f"{name}:{place}")


def printable(text: str) -> str:
    """Escapes the characters that UTF-8 cannot encode: names of files may be any bytes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def git_lfs_pointer(source: Path) -> str:
    """Describes a Git LFS pointer among the first files of a source; "" if there is none."""
    found = [source] if source.is_file() else _below(source)[:_MAX_INSPECTED]
    for path in found:
        with contextlib.suppress(OSError), path.open("rb") as file:
            if (head := file.read(64)).startswith(GIT_LFS):
                return f"{path} is {stand_in(head)}"
    return ""


def read_whole(path: Path) -> bytes:
    """Reads a regular file; raises BadRecord if it is missing, unreadable or too large."""
    try:
        # Anything else, such as a pipe, could block a reader forever.
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
