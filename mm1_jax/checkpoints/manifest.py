"""Checksums of the files of a checkpoint, to detect damage before training on it.

    manifest.json   {file: [bytes, "xxh3:" and 128 bits of XXH3]}, for all files except itself

The manifest is written before the folder gets its final name, so every complete checkpoint has one.
Writing it reads every file once, in several threads, and checking it does so on all hosts together,
each of which reads its share. XXH3 takes 0.1 to 0.2 seconds per gigabyte and core. It finds damage,
not forgery. Older manifests hold BLAKE2b digests of 16 bytes, without a prefix.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import xxhash
from etils import epath

MANIFEST = "manifest.json"
# Orbax still writes to these files after the manifest is written.
_OPEN_UNTIL_COMMITTED = ("_CHECKPOINT_METADATA", "commit_success.txt")
_CHUNK_BYTES = 1 << 20
_NUM_THREADS = 8
_XXH3 = "xxh3:"


def write_manifest(folder: epath.Path) -> None:
    """Writes the manifest of a folder that is no longer being written to."""
    files = sorted(_files(folder))
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        entries = pool.map(lambda name: _entry(folder / name), files)
        manifest = dict(zip(files, entries, strict=True))
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=0) + "\n")


def find_damage(folder: epath.Path, *, part: int = 0, num_parts: int = 1) -> list[str] | None:
    """Lists missing or modified files; returns None if there is no manifest.

    Args:
        part: Number of the share of files to look at, of `num_parts` shares of about equal size.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = dict(json.loads(path.read_text()))
        shares = sorted(manifest.items(), key=lambda item: (-item[1][0], item[0]))[part::num_parts]
    except (ValueError, TypeError, LookupError):
        return [f"{MANIFEST} is not a JSON object of sizes and digests"]
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        found = pool.map(lambda item: _difference(folder, *item), shares)
        return [line for line in found if line is not None]


def _difference(folder: epath.Path, name: str, stated: list[Any]) -> str | None:
    path = folder / name
    if not path.exists():
        return f"{name} is missing"
    # Compare lengths first, which is cheap.
    length = path.stat().length
    if length != stated[0]:
        return f"{name} has {length:,} bytes instead of {stated[0]:,}"
    digest = _digest(path) if str(stated[1]).startswith(_XXH3) else _former_digest(path)
    return None if digest == stated[1] else f"{name} differs from what was written"


def _files(folder: epath.Path, prefix: str = "") -> Iterator[str]:
    for path in folder.iterdir():
        name = prefix + path.name
        if path.is_dir():
            yield from _files(path, f"{name}/")
        elif path.name not in (MANIFEST, *_OPEN_UNTIL_COMMITTED):
            yield name


def _entry(path: epath.Path) -> list[Any]:
    return [path.stat().length, _digest(path)]


def _digest(path: epath.Path) -> str:
    return _XXH3 + _hashed(path, xxhash.xxh3_128())


def _former_digest(path: epath.Path) -> str:
    return _hashed(path, hashlib.blake2b(digest_size=16))


def _hashed(path: epath.Path, digest: Any) -> str:
    with path.open("rb") as file:
        for chunk in chunks(file):
            digest.update(chunk)
    return digest.hexdigest()


def chunks(file: Any) -> Iterator[bytes | memoryview]:
    """Yields the content of a file; a chunk is valid until the next one."""
    if not hasattr(file, "readinto"):
        # Some files in buckets are no files of `io`.
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
        return
    # One buffer for all chunks: fresh memory for each takes longer than the digest.
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    while length := file.readinto(buffer):
        yield buffer[:length]
