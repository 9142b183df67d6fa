"""Images that records refer to: by a path in a folder, by a name in a tar file, or by URL.

`read` returns the bytes of an image, or raises BadRecord with the reason why there are none.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from mm1_jax.data.readers.entries import Rejected
from mm1_jax.data.readers.json_files import as_object, parse_json
from mm1_jax.data.readers.source_files import is_hidden, read_whole
from mm1_jax.data.readers.tar import Member, members, read_member
from mm1_jax.data.record_files import BadRecord

URL_MAP = "url_to_file.json"
# Tried in this order; names of files are case-sensitive on most machines.
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")


class ImageFolder:
    """Images by path in a folder. Paths out of it are rejected, as are links unless followed."""

    def __init__(self, folder: Path, follow_links: bool = False):
        self.path = folder
        self._root = folder.resolve()
        self._follow_links = follow_links

    def read(self, name: Any) -> bytes:
        path = self._find(name)
        try:
            data = read_whole(path)
        except BadRecord as error:
            raise BadRecord(f"image {name!a:.200}: {error}") from error
        if not data:
            raise BadRecord(f"image {name!a:.200}: it is empty")
        return data

    def has(self, name: Any) -> bool:
        """True if there is such a file."""
        try:
            return self._find(name).is_file()
        except (BadRecord, OSError):
            return False

    def names(self) -> Collection[str]:
        """Returns the names of all non-hidden files, unsorted; none if the folder is unreadable."""
        try:
            with os.scandir(self.path) as found:
                return [
                    entry.name for entry in found if entry.is_file() and not is_hidden(entry.name)
                ]
        except OSError:
            return []

    def _find(self, name: Any) -> Path:
        if not isinstance(name, str) or not name:
            raise BadRecord(f"image {name!a:.200} is not the name of a file")
        try:
            path = self._root / name
            path = Path(os.path.normpath(path)) if self._follow_links else path.resolve()
        # A NUL or a lone surrogate, a name that is too long, or a cycle of links.
        except (ValueError, OSError, RuntimeError) as error:
            raise BadRecord(f"image {name!a:.200} is not the name of a file") from error
        if not path.is_relative_to(self._root):
            is_link = Path(os.path.normpath(self._root / name)).is_relative_to(self._root)
            raise BadRecord(
                f"image {name!a:.200} lies outside the folder of images"
                + is_link * ", where a link leads; --option.follow_links=true follows links"
            )
        return path


class ImageTar:
    """Images by their name in a tar file; the names and offsets of its members are in memory."""

    def __init__(self, path: Path):
        self.path = path
        self._members: dict[str, Member] = {}
        # Explains why a name may be missing.
        self._problem = ""
        try:
            with path.open("rb") as file:
                for member in members(file, path):
                    if isinstance(member, Rejected):
                        self._problem = f" ({member.reason})"
                    elif isinstance(member, Member):
                        self._members.setdefault(member.name.removeprefix("./"), member)
        except OSError as error:
            self._problem = f" (it cannot be read: {error.strerror})"

    def read(self, name: Any) -> bytes:
        if not self.has(name):
            raise BadRecord(f"image {name!a:.200} is not in {self.path.name}{self._problem}")
        try:
            with self.path.open("rb") as file:
                data = read_member(file, self._members[name])
        except OSError as error:
            raise BadRecord(f"image {name!a:.200}: it cannot be read: {error.strerror}") from error
        if not data:
            raise BadRecord(f"image {name!a:.200}: it is empty")
        return data

    def has(self, name: Any) -> bool:
        """True if there is such a member."""
        return isinstance(name, str) and name in self._members

    def names(self) -> Collection[str]:
        """Returns the names of all members."""
        return self._members


class ImageSearch:
    """Images by name in the first of several places that has them, with any extension.

    Many datasets name all images .jpg, while some of the files are .png or .gif (OCR-VQA).
    """

    def __init__(self, places: Sequence[ImageFolder | ImageTar]):
        self._places = places

    def read(self, *names: Any) -> bytes:
        """Returns the image of the first name that exists; raises BadRecord if none does."""
        for place in self._places:
            for name in (*names, *_other_extensions(names)):
                if place.has(name):
                    return place.read(name)
        return self._places[0].read(names[0])


def _other_extensions(names: Sequence[Any]) -> Iterator[str]:
    for name in names:
        if isinstance(name, str) and name:
            stem, extension = os.path.splitext(name)
            stem = stem if extension.lower() in _EXTENSIONS else name
            for other in _EXTENSIONS:
                yield stem + other
                yield stem + other.upper()


def image_files(path: Path, follow_links: bool = False) -> ImageFolder | ImageTar:
    """Opens the images of a folder or of a tar file.

    Raises:
        ValueError: It is neither.
    """
    if not holds_images(path):
        raise ValueError(f"images={str(path)!r} is neither a folder nor a .tar file")
    return ImageFolder(path, follow_links) if path.is_dir() else ImageTar(path)


def holds_images(path: Path) -> bool:
    """True for a folder or a tar file."""
    return path.is_dir() or (path.is_file() and path.suffix.lower() == ".tar")


class UrlMap:
    """Images by URL: a JSON object maps URLs to paths in the folder of the JSON file."""

    def __init__(self, path: Path, follow_links: bool = False):
        try:
            self._files = as_object(parse_json(path.read_bytes()))
        except OSError as error:
            raise BadRecord(f"it cannot be read: {error.strerror}") from error
        self._folder = ImageFolder(path.parent, follow_links)

    def read(self, url: str) -> bytes:
        if url not in self._files:
            raise BadRecord(f"no file is known for {url!a:.200}")
        return self._folder.read(self._files[url])


def stored_image(image: Any, folder: ImageFolder) -> bytes:
    """Reads an image as Hugging Face stores it: bytes, or a struct with bytes or a path."""
    if isinstance(image, dict):
        data = image.get("bytes")
        return folder.read(image.get("path")) if data is None else stored_image(data, folder)
    if not isinstance(image, bytes):
        raise BadRecord("no image" if image is None else f"an image of type {type(image).__name__}")
    return image
