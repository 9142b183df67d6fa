"""Fixtures for tests of format readers, which check everything that a reader yields."""

import io
import pickle
import re
from collections import Counter
from collections.abc import Callable

import PIL.Image
import pytest

from mm1_jax.batch import Record
from mm1_jax.data.ingest.formats.base import Format
from mm1_jax.data.readers.entries import Rejected, documents_of
from mm1_jax.data.record_files import RecordKind, decode_record, encode_record


def _check_captions(record: Record):
    assert isinstance(record["image"], bytes) and record["image"]
    assert record["captions"]
    for caption in record["captions"]:
        assert caption["text"].strip() and isinstance(caption["kind"], str)
    assert isinstance(record.get("url", ""), str)


def _check_page(record: Record):
    places = list(zip(record["texts"], record["images"], record["urls"], strict=True))
    assert places
    for text, image, url in places:
        assert isinstance(text, str) if image is None else isinstance(image, bytes) and image
        assert (text is None) != (image is None)
        assert url is None or (isinstance(url, str) and image is not None)
    assert record["missing_images"] >= 0


def _check_text(record: Record):
    assert record["text"].strip()


def _check_conversation(record: Record):
    assert all(isinstance(image, bytes) and image for image in record["images"])
    roles = [turn["role"] for turn in record["turns"]]
    asked = roles[roles[0] == "system" :]
    assert asked == ["user", "assistant"] * (len(asked) // 2) and asked
    text = "".join(turn["text"] for turn in record["turns"])
    if record["images"]:
        assert text.count("<image>") in (0, len(record["images"]))
    if "boxes" in record:
        assert len(re.findall("<box>|<point>", text)) == len(record["boxes"]) > 0
        for box in record["boxes"]:
            assert 0 <= box["image"] < len(record["images"])
            assert all(0 <= number <= 1 for number in box.get("box", box.get("point")))


_CHECKS = {
    RecordKind.CAPTIONS: _check_captions,
    RecordKind.INTERLEAVED: _check_page,
    RecordKind.TEXT: _check_text,
    RecordKind.CONVERSATIONS: _check_conversation,
}


@pytest.fixture(scope="session")
def convert() -> Callable:
    """Reads a source twice; checks the layout of the records, and that both reads agree."""

    def convert(form: Format, source) -> tuple[list[Record], list[Rejected]]:
        units = form.units(source)
        assert units == form.units(source)
        sent = pickle.loads(pickle.dumps(form))
        items = [item for unit in units for item in form.read(unit)]
        assert items == [item for unit in units for item in sent.read(unit)]
        records = [record for item in items for record in documents_of(item).records]
        rejected = [item for item in items if isinstance(item, Rejected)]
        for record in records:
            _CHECKS[form.kind](record)
            assert decode_record(encode_record(record)) == record
        ids = [record["id"] for record in records]
        assert len(set(ids)) == len(ids)
        for text in (*ids, *(text for item in rejected for text in (item.id, item.reason))):
            # No lone surrogates, so that the text can be printed.
            assert text.encode("utf-8")
        return records, rejected

    return convert


@pytest.fixture(scope="session")
def picture() -> Callable:
    """Returns the bytes of a PNG of a width and a height."""

    def picture(width: int, height: int, color: str = "red") -> bytes:
        file = io.BytesIO()
        PIL.Image.new("RGB", (width, height), color).save(file, "PNG")
        return file.getvalue()

    return picture


@pytest.fixture(scope="session")
def texts() -> Callable:
    """Returns the texts of the turns of a record."""
    return lambda record: [turn["text"] for turn in record["turns"]]


@pytest.fixture(scope="session")
def counts() -> Callable:
    """Returns the additional counts of a source."""

    def counts(form: Format, source) -> dict[str, int]:
        items = [item for unit in form.units(source) for item in form.read(unit)]
        return dict(sum((Counter(documents_of(item).counts) for item in items), Counter()))

    return counts


@pytest.fixture(scope="session")
def reasons() -> Callable:
    """Maps the ids of rejected entries to the reasons."""
    return lambda rejected: {item.id: item.reason for item in rejected}
