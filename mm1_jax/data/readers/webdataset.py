"""Samples of WebDataset's tar shards: adjacent members that share a key."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mm1_jax.data.readers.entries import Documents, Rejected
from mm1_jax.data.readers.source_files import entry_id
from mm1_jax.data.readers.tar import Member, members

# Extensions of images.
IMAGES = ("jpg", "jpeg", "png", "webp")
# WebDataset's rule: the key ends at the first dot after the last slash.
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)


class Sample(NamedTuple):
    """The members of one key, by extension."""

    key: str
    members: dict[str, Member]


def sample_name(name: str) -> tuple[str, str] | None:
    """Splits a name into key and extension by WebDataset's rule; None if it has no extension."""
    match = _NAME.fullmatch(name)
    return None if match is None else (match[1], match[2].lower())


def samples(file: io.BufferedIOBase, path: Path) -> Iterator[Sample | Rejected | Documents]:
    """Yields the samples of the open tar file at `path`, and HIDDEN for each hidden file.

    Yields a Rejected for each member that belongs to no sample.
    """
    finished: set[str] = set()
    sample = None
    for member in members(file, path):
        if isinstance(member, Rejected | Documents):
            yield member
            continue
        name = sample_name(member.name)
        if name is None or name[0] in finished:
            reason = "its key has been there before" if name else "a name without an extension"
            yield Rejected(entry_id(path, member.name), reason)
            continue
        key, extension = name
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
                finished.add(sample.key)
            sample = Sample(key, {})
        if extension in sample.members:
            yield Rejected(entry_id(path, member.name), "it comes a second time")
        else:
            sample.members[extension] = member
    if sample is not None:
        yield sample
