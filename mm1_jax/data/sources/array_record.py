"""Records in the ArrayRecord shards that `python -m mm1_jax convert_records` writes."""

from collections.abc import Sequence
from pathlib import Path

from mm1_jax.batch import Record
from mm1_jax.config import config_class
from mm1_jax.data.record_files import RecordFiles
from mm1_jax.data.sources.base import FileSource, SplitIndices, source_path


class ArrayRecordSource(FileSource):
    """A folder of records as `python -m mm1_jax convert_records` writes them."""

    @config_class
    class Config(FileSource.Config):
        # Folder of the test split, for data that comes with one; all of `path` is then training
        # data.
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
    """Returns the folder of a split."""
    if split == "test" and cfg.test_path is not None:
        return source_path(cfg.clone(path=cfg.test_path))
    return source_path(cfg)
