"""OBELICS' Parquet: one page per row, with parallel lists `images` and `texts`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mm1_jax.batch import Record
from mm1_jax.data.ingest.formats.base import Format
from mm1_jax.data.readers.entries import Documents, Entry
from mm1_jax.data.readers.image_files import URL_MAP, ImageFolder, stored_image
from mm1_jax.data.readers.json_files import parse_json
from mm1_jax.data.readers.parquet import missing_column, row_group_units, rows
from mm1_jax.data.readers.source_files import Unit
from mm1_jax.data.readers.url_index import url_map, url_map_path
from mm1_jax.data.record_files import BadRecord, RecordKind
from mm1_jax.data.records import parallel_record, records_of

_NEEDED = ("images", "texts")
_OTHERS = ("metadata", "general_metadata")


class Obelics(Format):
    """Interleaved pages; unavailable images are left out and counted in the record.

    A page is cut into documents at OBELICS' end-of-document marks. An image is a URL, which
    `images` maps to a file, or a struct of bytes or a path, as Hugging Face stores images. A place
    with neither text nor image is a missing image.

    Args:
        images: A JSON map of URLs to files, a folder that holds `url_to_file.json`, or the folder
            of tar shards into which img2dataset downloaded the URLs. Defaults to the folder of the
            Parquet file.
    """

    name = "obelics"
    kind = RecordKind.INTERLEAVED

    def __init__(self, *, images: str | Path | None = None):
        self._images = None if images is None else Path(images)

    def units(self, source: Path) -> list[Unit]:
        units = row_group_units(source, _choose, "Parquet of OBELICS", self.follow_links)
        paths = dict.fromkeys(self._map_path(unit.path) for unit in units)
        problems = [problem for path in paths if (problem := self._problem(path))]
        # Images that are in the Parquet itself need no map.
        if problems and (self._images is not None or any(_has_urls(unit.path) for unit in units)):
            raise ValueError(
                "images must be a JSON map of URLs to image files, or a folder that holds "
                f"{URL_MAP} or tar shards of img2dataset: {problems[0]}"
            )
        return units

    def read(self, unit: Unit) -> Iterator[Entry]:
        folder = ImageFolder(unit.path.parent, self.follow_links)
        map_path = self._map_path(unit.path)

        def read_image(image: Any) -> bytes:
            if isinstance(image, str):
                return url_map(map_path, self.follow_links).read(image)
            return stored_image(image, folder)

        def record(entry: str, row: dict[str, Any]) -> Record | Documents:
            url = _get(_parsed(row.get("general_metadata")), "url")
            lists = row["texts"], row["images"]
            return parallel_record(entry, *lists, read_image, _urls(row), source_id=url)

        return records_of(rows(unit, _choose), record)

    def _problem(self, path: Path) -> str:
        try:
            url_map(path, self.follow_links)
        except BadRecord as error:
            return f"{path}: {error}"
        return ""

    def _map_path(self, path: Path) -> Path:
        return url_map_path(self._images or path.parent, self.follow_links)


def _choose(schema: pa.Schema) -> list[str]:
    for name in _NEEDED:
        if name not in schema.names:
            raise missing_column((name,), schema)
    return [name for name in (*_NEEDED, *_OTHERS) if name in schema.names]


def _urls(row: dict[str, Any]) -> list[Any]:
    """Returns the URL of each place: the value in `images`, or `src` in the image's metadata."""
    images = row["images"] if isinstance(row["images"], list) else []
    if not any(isinstance(image, dict) for image in images):
        return images
    about = _parsed(row.get("metadata"))
    return [_get(one, "src") for one in about] if isinstance(about, list) else []


def _parsed(text: Any) -> Any:
    try:
        return parse_json(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else None
    except BadRecord:
        # The metadata is optional.
        return None


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _has_urls(path: Path) -> bool:
    try:
        images = pq.read_schema(path).field("images").type
    except Exception:  # The exceptions of pyarrow for damage share no base class.
        return False
    return isinstance(images, pa.ListType | pa.LargeListType) and (
        pa.types.is_string(images.value_type) or pa.types.is_large_string(images.value_type)
    )
