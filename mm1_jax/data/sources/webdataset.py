"""Samples of WebDataset shards by number, read in place; nothing is unpacked or converted.

One pass over the headers of the tar files finds the members of each sample. The resulting index is
cached beside the files; a change of a file leads to a new index.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm
from absl import logging

from mm1_jax.batch import Record
from mm1_jax.data.readers.compressed import decode_text
from mm1_jax.data.readers.entries import Documents, Rejected
from mm1_jax.data.readers.json_files import as_object, parse_json
from mm1_jax.data.readers.source_files import (
    documents_below,
    entry_id,
    files_key,
    links_not_followed,
)
from mm1_jax.data.readers.tar import Member, read_member
from mm1_jax.data.readers.webdataset import IMAGES, Sample, samples
from mm1_jax.data.record_files import BadRecord
from mm1_jax.data.records import captions_record
from mm1_jax.data.sources.base import FileSource, SplitIndices
from mm1_jax.storage import whole_folder

# Incremented to invalidate cached indexes when their format changes.
_VERSION = 2
_SUFFIX = ".tar"
_IMAGE, _TEXT, _ABOUT = range(3)
_PARTS = {**dict.fromkeys(IMAGES, _IMAGE), "txt": _TEXT, "json": _ABOUT}
# Spans are the offset and size of image, text and JSON, or (-1, -1). Entries that are not samples
# have shard -1.
_SAMPLE = np.dtype([("shard", "<i4"), ("num_images", "<i4"), ("spans", "<i8", (3, 2))])
# With more entries than this that are not samples, the data is not WebDataset.
_MAX_REJECTED = 10_000


class WebDatasetSource(FileSource):
    """The samples of a tar file, or of the tar files below a folder in the order of their paths.

    Adjacent members that share a key form a sample, as in the format `webdataset`; hidden files are
    skipped. A record has the fields of its `.json`, and `id`, `image` and `captions`. Its caption
    is the `.txt`, or the `caption` of the JSON if there is no `.txt`. An entry that belongs to no
    sample is a bad record in its place, so that it is counted. The fingerprint covers the offsets
    and sizes of members, but not their bytes.
    """

    def __init__(self, cfg: FileSource.Config, *, split: str):
        super().__init__(cfg, split=split)
        is_file = self.path.is_file()
        self._shards = [self.path] if is_file else documents_below(self.path, (_SUFFIX,))
        if not self._shards:
            raise ValueError(
                f"source.path={str(self.path)!r} holds no WebDataset shards. Set it to a "
                f"{_SUFFIX} file, or to a folder of such files."
            )
        if not is_file and (links := links_not_followed(self.path)):
            logging.warning("source.path: %s; name their targets instead", links)
        self.cache_dir = self.path.parent if is_file else self.path
        self._index = _index(self._shards, self.path, self.cache_dir)
        self._split = SplitIndices(len(self._index.samples), split, cfg.test_every)

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> Record:
        number = self._split[index]
        sample = self._index.samples[number]
        shard, num_images = int(sample["shard"]), int(sample["num_images"])
        if shard < 0:
            raise BadRecord(self._index.rejected[number])
        path = self._shards[shard]
        spans = sample["spans"].tolist()
        parts = [None if size < 0 else Member("", offset, size) for offset, size in spans]
        where = entry_id(path, next(member.offset for member in parts if member))
        try:
            if num_images != 1:
                raise BadRecord(f"{num_images} images, expected one" if num_images else "no image")
            with path.open("rb") as file:
                return _record(file, where, parts)
        except BadRecord as error:
            raise BadRecord(f"{where}: {error}") from error
        except OSError as error:
            raise BadRecord(f"{where}: it cannot be read: {error.strerror}") from error

    def fingerprint(self) -> str:
        return (
            f"samples={len(self._index.samples)} digest={self._index.digest} split={self.split} "
            f"test_every={self._config.test_every}"
        )


def _record(file: io.BufferedIOBase, entry: str, parts: Sequence[Member | None]) -> Record:
    image, text, about = (part and read_member(file, part) for part in parts)
    fields: dict[str, Any] = {}
    if about is not None:
        try:
            fields = as_object(parse_json(about))
        except BadRecord:
            # The JSON is needed only if there is no other caption.
            if text is None:
                raise
    caption = fields.pop("caption", None)
    if text is not None:
        caption = decode_text(text)
    return fields | captions_record(entry, image, [(caption, "caption")])


class _Index:
    """The places of all samples.

    Attributes:
        samples: Array of dtype `_SAMPLE`.
        rejected: Reasons why entries are not samples, by their index in `samples`.
        digest: Changes with the content of the index.
    """

    def __init__(self, samples: np.ndarray, rejected: dict[int, str], digest: str):
        self.samples = samples
        self.rejected = rejected
        self.digest = digest
        self._folder: Path | None = None

    def store(self, folder: Path) -> "_Index":
        """Writes the index atomically; returns one that reads it from disk."""
        with whole_folder(folder) as partial:
            np.save(partial / "samples.npy", self.samples)
            facts = {"digest": self.digest, "rejected": list(self.rejected.items())}
            (partial / "facts.json").write_text(json.dumps(facts))
        return _Index.load(folder)

    @classmethod
    def load(cls, folder: Path) -> "_Index":
        """Loads what `store` wrote, memory-mapped; raises ValueError for anything else."""
        try:
            samples = np.load(folder / "samples.npy", mmap_mode="r", allow_pickle=False)
            facts = json.loads((folder / "facts.json").read_text())
            index = cls(samples, dict(facts["rejected"]), facts["digest"])
        except OSError:
            raise
        # For a damaged header, numpy raises whatever its parser raises.
        except Exception as error:
            raise ValueError(f"{folder} is not an index: {error}") from error
        if samples.dtype != _SAMPLE or samples.ndim != 1:
            raise ValueError(f"{folder} is not an index: {samples.dtype} {samples.shape}")
        index._folder = folder
        return index

    def __getstate__(self) -> dict[str, Any]:
        # Pickle would copy a memory map into an array.
        return self.__dict__ if self._folder is None else {"_folder": self._folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        folder = state["_folder"]
        self.__dict__.update(state if folder is None else _Index.load(folder).__dict__)


def _index(shards: Sequence[Path], source: Path, cache_dir: Path) -> _Index:
    """Returns the index of shards from the cache, or builds it and caches it if possible."""
    folder = cache_dir / "webdataset_index" / files_key(shards, cache_dir, _VERSION)
    try:
        return _Index.load(folder)
    except FileNotFoundError:
        pass
    except ValueError as error:
        logging.warning("%s; it is rebuilt", error)
        shutil.rmtree(folder, ignore_errors=True)
    index = _build_index(shards, source)
    try:
        return index.store(folder)
    except (OSError, ValueError) as error:
        logging.warning("%s: the index of the shards is not cached (%s)", folder, error)
        return index


def _build_index(shards: Sequence[Path], source: Path) -> _Index:
    digest = hashlib.blake2b(digest_size=8)
    tables: list[np.ndarray] = []
    rejected: dict[int, str] = {}
    start = 0
    for number, path in enumerate(tqdm.tqdm(shards, f"index of {source}", delay=3, disable=None)):
        rows = []
        for item in _samples(path):
            if isinstance(item, Rejected):
                rejected[start + len(rows)] = f"{item.id}: {item.reason}"
                rows.append((-1, 0, _NOWHERE))
            else:
                rows.append((number, *item))
            if len(rejected) > _MAX_REJECTED:
                raise ValueError(
                    f"{source}: more than {_MAX_REJECTED} entries are not samples; the first is "
                    f"{next(iter(rejected.values()))}"
                )
        tables.append(np.array(rows, _SAMPLE))
        start += len(rows)
        digest.update(path.stat().st_size.to_bytes(8, "little"))
        digest.update(tables[-1].tobytes())
    if start == len(rejected):
        reason = next(iter(rejected.values()), "its shards are empty")
        raise ValueError(f"source.path={str(source)!r} holds no WebDataset samples: {reason}")
    return _Index(np.concatenate(tables), rejected, digest.hexdigest())


_NOWHERE = ((-1, -1),) * 3
# The number of images of a sample, and its spans.
_Places = tuple[int, tuple[tuple[int, int], ...]]


def _samples(path: Path) -> Iterator[_Places | Rejected]:
    """Yields the places of the members of each sample of a shard."""
    try:
        with path.open("rb") as file:
            for item in samples(file, path):
                if not isinstance(item, Documents):
                    yield _places(item, path) if isinstance(item, Sample) else item
    except OSError as error:
        yield Rejected(entry_id(path), f"it cannot be read: {error.strerror}")


def _places(sample: Sample, path: Path) -> _Places | Rejected:
    spans = list(_NOWHERE)
    for extension, member in sample.members.items():
        if extension in _PARTS:
            spans[_PARTS[extension]] = member.offset, member.size
    if spans == list(_NOWHERE):
        return Rejected(entry_id(path, sample.key), f"none of {', '.join(_PARTS)}")
    num_images = sum(_PARTS.get(extension) == _IMAGE for extension in sample.members)
    return num_images, tuple(spans)
