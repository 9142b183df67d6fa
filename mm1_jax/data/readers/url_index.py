"""Images in tar shards downloaded by img2dataset, by their original URL.

One pass over the headers and the JSON of the shards builds an index, which is cached beside them.
It takes 28 bytes per image and is memory-mapped.
"""

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tqdm

from mm1_jax.data.readers.image_files import URL_MAP, UrlMap
from mm1_jax.data.readers.json_files import as_object, parse_json
from mm1_jax.data.readers.source_files import documents_below, files_key
from mm1_jax.data.readers.tar import Member, members, read_member
from mm1_jax.data.readers.webdataset import IMAGES, sample_name
from mm1_jax.data.record_files import BadRecord
from mm1_jax.storage import whole_folder

# Incremented to invalidate cached indexes when their format changes.
_VERSION = 1
_SUFFIX = ".tar"
_PLACE = np.dtype([("url", "<u8"), ("shard", "<i4"), ("offset", "<i8"), ("size", "<i8")])


class UrlIndex:
    """Images by URL, in the tar shards below a folder.

    Shards have img2dataset's layout: `KEY.jpg`, and `KEY.json` with its `url`. If several images
    share a URL, the first one is used. URLs are compared by a 64-bit digest.

    Raises:
        ValueError: There are no shards, or the index cannot be written beside them.
    """

    def __init__(self, folder: Path, follow_links: bool = False):
        self._shards = documents_below(folder, (_SUFFIX,), follow_links)
        if not self._shards:
            raise ValueError(f"{folder}: expected tar shards of img2dataset, *.tar, found none")
        index = folder / f"url_index-{files_key(self._shards, folder, _VERSION)}"
        if not index.is_dir():
            self._make(index)
        self._places = np.load(index / "places.npy", mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self._places)

    def read(self, url: str) -> bytes:
        """Returns the bytes of an image; raises BadRecord if there are none."""
        digest = _digest_of(url)
        at = int(np.searchsorted(self._places["url"], digest))
        if at == len(self._places) or self._places["url"][at] != digest:
            raise BadRecord(f"no file is known for {url!a:.200}")
        _, shard, offset, size = self._places[at].item()
        path = self._shards[shard]
        try:
            with path.open("rb") as file:
                data = read_member(file, Member("", offset, size))
        except (OSError, BadRecord) as error:
            raise BadRecord(f"{url!a:.200} in {path.name}: {error}") from error
        if not data:
            raise BadRecord(f"image {url!a:.200}: it is empty")
        return data

    def _make(self, index: Path) -> None:
        shards = tqdm.tqdm(self._shards, desc="URLs of pictures", unit="shard", mininterval=1)
        found = [
            (digest, number, member.offset, member.size)
            for number, path in enumerate(shards)
            for digest, member in _pictures(path)
        ]
        places = np.array(found, _PLACE)
        # Stable, so that the first of equal URLs is kept.
        places = places[np.argsort(places["url"], kind="stable")]
        is_first = np.ones(len(places), bool)
        is_first[1:] = places["url"][1:] != places["url"][:-1]
        try:
            with whole_folder(index) as partial:
                np.save(partial / "places.npy", places[is_first])
        except OSError as error:
            raise ValueError(
                f"{index}: the index of URLs cannot be written beside the shards: {error.strerror}"
            ) from error


def url_map_path(images: Path, follow_links: bool = False) -> Path:
    """Returns the JSON file, or the folder of shards, that maps the URLs of images.

    Args:
        images: One of them, or the folder of the JSON file.
    """
    if not images.is_dir():
        return images
    if (images / URL_MAP).exists():
        return images / URL_MAP
    shards = documents_below(images, (_SUFFIX,), follow_links)
    return images if shards else images / URL_MAP


def url_map(path: Path, follow_links: bool = False) -> UrlMap | UrlIndex:
    """Returns the cached map at a path, as maps of millions of URLs are slow to read."""
    return _cached_url_map(path, path.stat().st_mtime_ns if path.exists() else 0, follow_links)


@functools.lru_cache(maxsize=2)
def _cached_url_map(path: Path, changed: int, follow_links: bool) -> UrlMap | UrlIndex:
    return UrlIndex(path, follow_links) if path.is_dir() else UrlMap(path, follow_links)


def _digest_of(url: str) -> np.uint64:
    data = url.encode("utf-8", "surrogatepass")
    return np.frombuffer(hashlib.blake2b(data, digest_size=8).digest(), "<u8")[0]


def _pictures(path: Path) -> Iterator[tuple[np.uint64, Member]]:
    """Yields the digest of each URL in a shard, and its image; damaged samples are skipped."""
    image: dict[str, Member] = {}
    about: dict[str, Member] = {}
    with path.open("rb") as file:
        for member in members(file, path):
            if not isinstance(member, Member) or (name := sample_name(member.name)) is None:
                continue
            key, extension = name
            if extension in IMAGES:
                image.setdefault(key, member)
            elif extension == "json":
                about.setdefault(key, member)
            # Complete samples are dropped from memory: shards may be large.
            if key in image and key in about:
                picture, described = image.pop(key), about.pop(key)
                try:
                    url = as_object(parse_json(read_member(file, described))).get("url")
                except BadRecord:
                    continue
                if isinstance(url, str):
                    yield _digest_of(url), picture
