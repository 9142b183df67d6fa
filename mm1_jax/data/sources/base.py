"""Random-access sources of records: `len(source)` and `source[i]`, a pure function of i.

A source is built for one split, "train" or "test"; the two never share a record.
"""

import abc
from collections.abc import Iterator
from pathlib import Path

from mm1_jax.batch import Record
from mm1_jax.config import REQUIRED, Configurable, Required, config_class, derived
from mm1_jax.field_types import PositiveInt

SPLITS = ("train", "test")


class Source(Configurable, abc.ABC):
    """Records by number. Sources are pickled into workers, so they hold no open files.

    Attributes:
        cache_dir: Folder for data derived from the records; None disables caching.
        code_digest: Digest of the code that draws the records; None if they are read from files,
            which the hosts of a run share, and `cache_dir` with them.
    """

    cache_dir: Path | None = None
    code_digest: str | None = None

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
        """Describes everything that determines the records, to detect edits since a saved state.

        Defaults to the fields of the config; sources that read files override it.
        """
        return self._config.debug_string(kv_separator="=", field_separator=" ")


class SplitIndices:
    """Indices of the records of a split; the last of every `every` records is in the test split.

    Takes constant memory: a corpus may have billions of records.
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
    """Records in a file or a folder."""

    @config_class
    class Config(Source.Config):
        # Relative to `data_dir`, unless it is absolute.
        path: Required[str] = REQUIRED
        data_dir: str | None = derived(None)  # `input.data_dir`
        # Every n-th record is kept for the test split.
        test_every: PositiveInt = 20

    def __init__(self, cfg: Config, *, split: str):
        super().__init__(cfg, split=split)
        if cfg.test_every < 2:
            raise ValueError(f"source.test_every={cfg.test_every} must be at least 2.")
        self.path = source_path(cfg)


def source_path(cfg: FileSource.Config) -> Path:
    """Returns the file or folder of a source."""
    return Path(cfg.data_dir or ".", cfg.path)
