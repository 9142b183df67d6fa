"""Random-access readers of records: `len(source)` and `source[i]`, a pure function of i.

A source is built for one split, "train" or "test"; the two never share a record.
"""

import abc
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mm1_jax.batch import Record
from mm1_jax.config import REQUIRED, Configurable, Required, config_class
from mm1_jax.data.record_files import BadRecord, RecordFiles
from mm1_jax.field_types import PositiveInt

SPLITS = ("train", "test")


class Source(Configurable, abc.ABC):
    """Records by number. Sources are pickled into workers, so they hold no open files.

    Attributes:
        cache_dir: Where what is computed from the records may be kept; None: nowhere.
    """

    cache_dir: Path | None = None

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


class SplitIndices:
    """The records of a split: every `every`-th one, from the end of its group, is test.

    In constant memory: a corpus may have billions of records.
    """

    def __init__(self, num_records: int, split: str, every: int):
        self.every = every
        self._is_test = split == "test"
        num_test = num_records // every
        self._len = num_test if self._is_test else num_records - num_test

    def __len__(self) -> int:
        return self._len

    def __iter__(self) -> Iterator[int]:
        return map(self.__getitem__, range(self._len))

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self._len:
            raise IndexError(f"record {index} of {self._len}")
        if self._is_test:
            return index * self.every + self.every - 1
        return index + index // (self.every - 1)


class FileSource(Source):
    """Records that lie in a file or a folder."""

    @config_class
    class Config(Source.Config):
        # From `data_dir` on, unless it is absolute.
        path: Required[str] = REQUIRED
        data_dir: str | None = None  # Set by the experiment, from `input.data_dir`.
        # Every n-th record is kept for the test split.
        test_every: PositiveInt = 20

    def __init__(self, cfg: Config, *, split: str):
        super().__init__(cfg, split=split)
        if cfg.test_every < 2:
            raise ValueError(f"source.test_every={cfg.test_every} must be at least 2.")
        self.path = source_path(cfg)


def source_path(cfg: FileSource.Config) -> Path:
    """The file or folder of a source."""
    return Path(cfg.data_dir or ".", cfg.path)


class ArrayRecordSource(FileSource):
    """A folder of records as `tools/convert_records.py` writes them."""

    @config_class
    class Config(FileSource.Config):
        # The folder of the test split, for data that comes with one; all of `path` is then train.
        test_path: str | None = None

    def __init__(self, cfg: Config, *, split: str):
        super().__init__(cfg, split=split)
        self.path = source_folder(cfg, split)
        self._files = RecordFiles(self.path)
        self._split: Sequence[int] | SplitIndices = range(len(self._files))
        if cfg.test_path is None:
            self._split = SplitIndices(len(self._files), split, cfg.test_every)
        self.cache_dir = self.path

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> Record:
        return self._files[self._split[index]]

    def fingerprint(self) -> str:
        cfg = self._config
        part = f"test_every={cfg.test_every}" if cfg.test_path is None else "all"
        return f"{self._files.fingerprint()} split={self.split} {part}"


def source_folder(cfg: ArrayRecordSource.Config, split: str) -> Path:
    """The folder of a split."""
    if split == "test" and cfg.test_path is not None:
        return source_path(cfg.clone(path=cfg.test_path))
    return source_path(cfg)


class JsonlSource(FileSource):
    """One JSON object a line; the fields `image` and `images` name files beside the JSONL file.

    A record has these names replaced by the content of the files. Lines are found through an
    index of their offsets, built once. The fingerprint is of the JSONL file, wherever it lies, and
    does not see what the images hold.
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
        # The second for what is nested too deeply.
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
        """The content of an image file, which must lie under the folder of the JSONL file."""
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
                    + is_link * ", where a link leads; tools/convert_records.py can follow links"
                )
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
