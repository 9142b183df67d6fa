"""Checksums of the files of a checkpoint, to detect damage before training on it.

    manifest.json   {file: [bytes, BLAKE2b digest of 16 bytes]}, for all files except itself

The manifest is written before the folder gets its final name, so every complete checkpoint has one.
Writing and checking it each read every file once, in several threads. This takes about one second
per gigabyte and core, unless limited by the storage.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

MANIFEST = "manifest.json"
# Orbax still writes to these files after the manifest is written.
_OPEN_UNTIL_COMMITTED = ("_CHECKPOINT_METADATA", "commit_success.txt")
_CHUNK_BYTES = 1 << 22
_NUM_THREADS = 8


def write_manifest(folder: epath.Path) -> None:
    """Writes the manifest of a folder that is no longer being written to."""
    files = sorted(_files(folder))
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        entries = pool.map(lambda name: _entry(folder / name), files)
        manifest = dict(zip(files, entries, strict=True))
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=0) + "\n")


def find_damage(folder: epath.Path) -> list[str] | None:
    """Lists missing or modified files; returns None if there is no manifest."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        return [f"{MANIFEST} is not a JSON object"]
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        found = pool.map(lambda item: _difference(folder, *item), manifest.items())
        return [line for line in found if line is not None]


def _difference(folder: epath.Path, name: str, stated: list[Any]) -> str | None:
    path = folder / name
    if not path.exists():
        return f"{name} is missing"
    # Compare lengths first, which is cheap.
    length = path.stat().length
    if length != stated[0]:
        return f"{name} has {length:,} bytes instead of {stated[0]:,}"
    if _entry(path) != stated:
        return f"{name} differs from what was written"
    return None


def _files(folder: epath.Path, prefix: str = "") -> Iterator[str]:
    for path in folder.iterdir():
        name = prefix + path.name
        if path.is_dir():
            yield from _files(path, f"{name}/")
        elif path.name not in (MANIFEST, *_OPEN_UNTIL_COMMITTED):
            yield name


def _entry(path: epath.Path) -> list[Any]:
    digest, length = hashlib.blake2b(digest_size=16), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            length += len(chunk)
    return [length, digest.hexdigest()]
