"""Records in a JSONL file, with their images in files beside it."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from mm1_jax.batch import Record
from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.sources.base import FileSource, SplitIndices


class JsonlSource(FileSource):
    """One JSON object per line; the fields `image` and `images` name files beside the JSONL file.

    Records hold the content of these files instead of their names. An index of line offsets is
    built once. The fingerprint covers the content of the JSONL file, but neither its path nor the
    content of the images.
    """

    def __init__(self, cfg: FileSource.Config, *, split: str):
        super().__init__(cfg, split=split)
        if not self.path.is_file():
            raise ValueError(
                f"source.path={str(self.path)!r} is not a file. Set it to a JSONL file, one record "
                "a line, with its images at paths relative to its folder."
            )
        self._folder = self.path.parent.resolve()
        offsets, self._fingerprint = _scan(self.path)
        self._offsets = offsets
        self._split = SplitIndices(len(offsets), split, cfg.test_every)

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> Record:
        with self.path.open("rb") as file:
            file.seek(self._offsets[self._split[index]])
            line = file.readline()
        try:
            record = json.loads(line)
        # RecursionError is raised for deep nesting.
        except (ValueError, RecursionError) as error:
            raise BadRecord(f"{self.path.name}, record {index}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise BadRecord(f"{self.path.name}, record {index}: not a JSON object")
        if "image" in record:
            record["image"] = self._read(record["image"])
        if "images" in record:
            if not isinstance(record["images"], list):
                raise BadRecord(f"{self.path.name}, record {index}: images is not a list")
            record["images"] = [self._read(name) for name in record["images"]]
        return record

    def fingerprint(self) -> str:
        return f"{self._fingerprint} test_every={self._config.test_every}"

    def _read(self, name: Any) -> bytes | None:
        """Reads an image file, which must be below the folder of the JSONL file."""
        if name is None:
            return None
        if not isinstance(name, str) or "\0" in name:
            raise BadRecord(f"image {name!r} is not the name of a file")
        try:
            path = (self._folder / name).resolve()
            if not path.is_relative_to(self._folder):
                is_link = Path(os.path.normpath(self._folder / name)).is_relative_to(self._folder)
                raise BadRecord(
                    f"image {name!r} lies outside the folder of {self.path.name}"
                    + is_link
                    * ", where a link leads; `python -m mm1_jax convert_records` can "
                    "follow links"
                )
            return path.read_bytes()
        except OSError as error:
            raise BadRecord(f"image {name!r} cannot be read: {error.strerror}") from error


def _scan(path: Path) -> tuple[np.ndarray, str]:
    """Returns the offset of each non-blank line, and the size and digest of the file."""
    offsets, offset, digest = [], 0, hashlib.blake2b(digest_size=8)
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                offsets.append(offset)
            offset += len(line)
            digest.update(line)
    return np.array(offsets, np.int64), f"bytes={offset} digest={digest.hexdigest()}"
