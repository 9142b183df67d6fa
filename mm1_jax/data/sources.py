"""Random-access readers of records: `len(source)` and `source[i]`, a pure function of i.

A source is built for one split, "train" or "test"; the two never share a record.
"""

import abc
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from mm1_jax.batch import Record
from mm1_jax.config import REQUIRED, Configurable, Required, config_class

SPLITS = ("train", "test")


class BadRecord(ValueError):
    """A record that cannot become a document; the message is the reason."""


class Source(Configurable, abc.ABC):
    """Records by number. Sources are pickled into workers, so they hold no open files."""

    def __init__(self, cfg: Configurable.Config, *, split: str):
        super().__init__(cfg)
        if split not in SPLITS:
            raise ValueError(f"split={split!r}; expected one of {SPLITS}.")
        self.split = split

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Record: ...

    def fingerprint(self) -> str:
        """What decides the records, to tell edited data from the data of a saved state.

        The fields of the config, unless the records lie in files.
        """
        return self._config.debug_string(kv_separator="=", field_separator=" ")


def split_indices(num_records: int, split: str, test_every: int) -> np.ndarray:
    """The records of a split: every `test_every`-th one, from the end of its group, is test."""
    indices = np.arange(num_records)
    is_test = indices % test_every == test_every - 1
    return indices[is_test if split == "test" else ~is_test]


class JsonlSource(Source):
    """One JSON object a line; the fields `image` and `images` name files beside the JSONL file.

    A record has these names replaced by the content of the files. Lines are found through an
    index of their offsets, built once. The fingerprint is of the JSONL file, wherever it lies, and
    does not see what the images hold.
    """

    @config_class
    class Config(Configurable.Config):
        path: Required[str] = REQUIRED
        # Every n-th record is kept for the test split.
        test_every: int = 20

    def __init__(self, cfg: Config, *, split: str):
        super().__init__(cfg, split=split)
        self._path = Path(cfg.path)
        if not self._path.is_file():
            raise ValueError(
                f"source.path={cfg.path!r} is not a file. Set it to a JSONL file, one record a "
                "line, with its images at paths relative to its folder."
            )
        self._folder = self._path.parent.resolve()
        offsets, self._fingerprint = _scan(self._path)
        self._offsets = offsets[split_indices(len(offsets), split, cfg.test_every)]

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Record:
        with self._path.open("rb") as file:
            file.seek(self._offsets[index])
            line = file.readline()
        try:
            record = json.loads(line)
        except ValueError as error:
            raise BadRecord(f"{self._path.name}, record {index}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise BadRecord(f"{self._path.name}, record {index}: not a JSON object")
        if "image" in record:
            record["image"] = self._read(record["image"])
        if "images" in record:
            if not isinstance(record["images"], list):
                raise BadRecord(f"{self._path.name}, record {index}: images is not a list")
            record["images"] = [self._read(name) for name in record["images"]]
        return record

    def fingerprint(self) -> str:
        return f"{self._fingerprint} test_every={self._config.test_every}"

    def _read(self, name: Any) -> bytes | None:
        """The content of an image file, which must lie under the folder of the JSONL file."""
        if name is None:
            return None
        if not isinstance(name, str) or "\0" in name:
            raise BadRecord(f"image {name!r} is not the name of a file")
        try:
            path = (self._folder / name).resolve()
            if not path.is_relative_to(self._folder):
                raise BadRecord(f"image {name!r} lies outside the folder of {self._path.name}")
            return path.read_bytes()
        except OSError as error:
            raise BadRecord(f"image {name!r} cannot be read: {error.strerror}") from error


def _scan(path: Path) -> tuple[np.ndarray, str]:
    """Where each line that is not blank starts; size and digest of the file."""
    offsets, offset, digest = [], 0, hashlib.blake2b(digest_size=8)
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                offsets.append(offset)
            offset += len(line)
            digest.update(line)
    return np.array(offsets, np.int64), f"bytes={offset} digest={digest.hexdigest()}"
