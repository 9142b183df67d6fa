"""WebDataset's tar shards, as img2dataset writes them: `KEY.jpg`, `KEY.txt` and `KEY.json`."""

import io
from collections.abc import Iterator
from pathlib import Path

from mm1_jax.batch import Record
from mm1_jax.data.ingest.formats.base import Format, kinds_of_fields
from mm1_jax.data.readers.compressed import decode_text
from mm1_jax.data.readers.entries import Documents, Entry, Rejected
from mm1_jax.data.readers.json_files import as_object, parse_json
from mm1_jax.data.readers.source_files import Unit, entry_id, source_files
from mm1_jax.data.readers.tar import read_member
from mm1_jax.data.readers.webdataset import IMAGES, Sample, samples
from mm1_jax.data.record_files import BadRecord, RecordKind
from mm1_jax.data.records import captions_record, records_of


class Webdataset(Format):
    """Captions from adjacent members that share a key; one shard is one unit.

    The caption is the `.txt` of a sample, or else the `caption` of its `.json`, which may also hold
    the `url`. Members of other extensions belong to the sample and are not read, nor is the Parquet
    file beside a shard, which also lists failed downloads.

    Args:
        caption_kind: The `kind` of the captions in the records.
        captions: Several captions of an image, as "FIELD=KIND,FIELD=KIND": fields of the `.json`,
            or `txt` for the `.txt`. Fields that a sample lacks are left out.
    """

    name = "webdataset"
    kind = RecordKind.CAPTIONS

    def __init__(self, *, caption_kind: str = "caption", captions: str | None = None):
        self._caption_kind = caption_kind
        self._kinds = kinds_of_fields(captions)

    def units(self, source: Path) -> list[Unit]:
        expected = "tar shards of WebDataset, *.tar"
        files = source_files(source, (".tar",), expected, self.follow_links)
        return [Unit(path) for path in files]

    def read(self, unit: Unit) -> Iterator[Entry]:
        try:
            with unit.path.open("rb") as file:
                yield from records_of(
                    _named_samples(file, unit.path),
                    lambda entry, sample: self._record(file, entry, sample),
                )
        except OSError as error:
            yield Rejected(entry_id(unit.path), f"it cannot be read: {error.strerror}")

    def _record(self, file: io.BufferedIOBase, entry: str, sample: Sample) -> Record:
        images = [member for name in IMAGES if (member := sample.members.get(name))]
        if len(images) != 1:
            raise BadRecord(f"{len(images)} images, expected one" if images else "no image")
        text, about = sample.members.get("txt"), {}
        if "json" in sample.members:
            try:
                about = as_object(parse_json(read_member(file, sample.members["json"])))
            except BadRecord:
                # The JSON is needed only if there is no other caption.
                if text is None:
                    raise
        written = decode_text(read_member(file, text)) if text else None
        if self._kinds:
            fields = about | {"txt": written}
            captions = [(fields.get(field), kind) for field, kind in self._kinds.items()]
        else:
            captions = [(written if text else about.get("caption"), self._caption_kind)]
        return captions_record(
            entry,
            read_member(file, images[0]),
            captions,
            url=about.get("url"),
            source_id=sample.key,
        )


def _named_samples(
    file: io.BufferedIOBase, path: Path
) -> Iterator[tuple[str, Sample] | Rejected | Documents]:
    """Yields the samples of a shard, each with its id."""
    for item in samples(file, path):
        yield (entry_id(path, item.key), item) if isinstance(item, Sample) else item
