"""Formats for tests of conversions, imported by tests and by the processes that they start."""

import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mm1_jax.batch import Record
from mm1_jax.data.ingest.formats.base import Format
from mm1_jax.data.readers.entries import Rejected
from mm1_jax.data.readers.source_files import Unit
from mm1_jax.data.record_files import RecordKind


class Numbered(Format):
    """Captioned noise images: a file holds their number, and makes two units."""

    name = "numbered"
    kind = RecordKind.CAPTIONS

    def __init__(self, *, bad_every: int = 7, image_bytes: int = 2000, seconds: float = 0.0):
        self._bad_every = bad_every
        self._image_bytes = image_bytes
        self._seconds = seconds

    def units(self, source: Path) -> list[Unit]:
        files = sorted(source.glob("*.number")) if source.is_dir() else [source]
        if not files or not all(path.is_file() for path in files):
            raise ValueError(f"{source}: expected *.number, found nothing of the kind")
        return [Unit(path, part) for path in files for part in range(2)]

    def read(self, unit: Unit) -> Iterator[Record | Rejected]:
        for index in range(unit.part, int(unit.path.read_text()), 2):
            if self._seconds:
                time.sleep(self._seconds)
            id = f"{unit.path.stem}:{index}"
            if index % self._bad_every == self._bad_every - 1:
                yield Rejected(id, f"no image: {index}" if index % 2 else f"{index} 'images'")
                continue
            image = random.Random(id).randbytes(self._image_bytes)
            yield {"id": id, "image": image, "captions": [{"text": f"caption {id}", "kind": "alt"}]}


class Pages(Format):
    """Interleaved pages: a file is a list of pages, in which `!name` stands for an image."""

    name = "pages"
    kind = RecordKind.INTERLEAVED

    def units(self, source: Path) -> list[Unit]:
        return [Unit(path) for path in sorted(source.glob("*.pages"))]

    def read(self, unit: Unit) -> Iterator[Record | Rejected]:
        for index, words in enumerate(json.loads(unit.path.read_text())):
            yield page(f"{unit.path.stem}:{index}", words)


def page(id: str, words: Sequence[str]) -> Record:
    return {
        "id": id,
        "texts": [None if word[0] == "!" else word for word in words],
        "images": [word.encode() if word[0] == "!" else None for word in words],
        "urls": [f"https://a.org/{word[1:]}" if word[0] == "!" else None for word in words],
    }


class Broken(Numbered):
    """Fails in the middle of the second unit."""

    def read(self, unit: Unit) -> Iterator[Record | Rejected]:
        for index, entry in enumerate(super().read(unit)):
            if unit.part and index == 2:
                raise OSError(5, "Input/output error")
            yield entry


def write_numbers(folder: Path, numbers: Sequence[int]) -> Path:
    """Writes a folder with a file for each number."""
    folder.mkdir()
    for index, number in enumerate(numbers):
        (folder / f"{index}.number").write_text(str(number))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of all files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
