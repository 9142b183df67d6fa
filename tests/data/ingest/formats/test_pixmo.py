import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mm1_jax.data.ingest.formats.pixmo import Pixmo

URL = "https://a.org/cat.jpg"
SHA = hashlib.sha256(b"cat").hexdigest()
ROW = {"image_url": URL, "image_sha256": SHA}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / f"{hashlib.sha256(URL.encode()).hexdigest()}.png").write_bytes(b"cat")
    return tmp_path


def write(folder, rows):
    pq.write_table(pa.Table.from_pylist(rows), folder / "0.parquet")
    return folder / "0.parquet"


@pytest.mark.parametrize(
    ("fields", "source", "said"),
    [
        (
            {"caption": "A cat.", "transcripts": ["uh, a cat"]},
            *("pixmo_cap", ["Describe the image in detail.", "A cat."]),
        ),
        ({"question": "What?", "answer": "A cat."}, "pixmo_ask", ["What?", "A cat."]),
        ({"messages": ["a", "b", "c", "d"]}, "pixmo_cap_qa", list("abcd")),
        (
            {"questions": {"question": ["a", "c"], "answer": ["b", "d"]}},
            *("pixmo_docs", list("abcd")),
        ),
        (
            {"label": "eye", "points": [{"x": 25.0, "y": 50.0}, {"x": 100.0, "y": 0.0}]},
            *("pixmo_points", ['Point to "eye".', "<point>, <point>"]),
        ),
        (
            {"label": "dog", "points": []},
            *("pixmo_points", ['Point to "dog".', "There are none."]),
        ),
    ],
)
def test_each_dataset_becomes_a_conversation(folder, convert, texts, fields, source, said):
    # One more row, as an empty list alone has no type.
    points = [{"label": "x", "points": [{"x": 1.0, "y": 1.0}]}] if "points" in fields else []
    rows = [ROW | each for each in (fields, *points)]
    (record, *_), rejected = convert(Pixmo(), write(folder, rows))
    assert rejected == []
    assert record["images"] == [b"cat"] and record["source"] == source
    assert texts(record) == said
    if "<point>" in said[1]:
        assert [box["point"] for box in record["boxes"]] == [[0.25, 0.5], [1.0, 0.0]]


def test_urls_that_rotted_are_rejected(folder, convert):
    asked = {"question": "What?", "answer": "A cat."}
    rows = [
        ROW | asked | {"image_sha256": hashlib.sha256(b"dog").hexdigest()},
        {"image_url": "https://a.org/lost.jpg", "image_sha256": "0" * 64} | asked,
        {"image_url": None, "image_sha256": None} | asked,
        ROW | asked,
    ]
    path = write(folder, rows)
    records, rejected = convert(Pixmo(), path)
    assert len(records) == 1
    for item, reason in zip(
        rejected, ("differs", "no such file", "neither image_url"), strict=True
    ):
        assert reason in item.reason
    assert len(convert(Pixmo(check_sha=False), path)[0]) == 2


def test_points_outside_of_the_picture_are_rejected(folder, convert):
    rows = [ROW | {"label": "eye", "points": [{"x": 120.0, "y": 50.0}]}]
    _, (rejected,) = convert(Pixmo(), write(folder, rows))
    assert "outside of the picture" in rejected.reason


def test_images_are_found_by_url_or_in_the_row(tmp_path, convert):
    (tmp_path / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "url_to_file.json").write_text(json.dumps({URL: "cat.jpg"}))
    rows = [ROW | {"question": "What?", "answer": "A cat."}]
    ((record,), _) = convert(Pixmo(), write(tmp_path, rows))
    assert record["images"] == [b"cat"]
    image = {"bytes": b"page", "path": None}
    asked = [{"question": "a", "answer": "b"}]
    (tmp_path / "docs").mkdir()
    path = write(tmp_path / "docs", [{"image": image, "questions": asked}])
    ((record,), _) = convert(Pixmo(), path)
    assert record["images"] == [b"page"]
