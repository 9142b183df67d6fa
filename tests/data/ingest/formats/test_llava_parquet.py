import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mm1_jax.data.ingest.formats.llava_parquet import LlavaParquet

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
CHAT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


def write(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return path


def test_rows_of_onevision_are_conversations_with_their_source(tmp_path, convert, texts):
    (tmp_path / "b.jpg").write_bytes(b"b")
    rows = [
        {"id": "1", "image": {"bytes": b"a", "path": "a.jpg"}, "conversations": TURNS},
        {"id": "1", "image": {"bytes": None, "path": "b.jpg"}, "conversations": TURNS},
        {"id": "2", "image": None, "conversations": CHAT},
        {"id": "3", "image": None, "conversations": TURNS},
    ]
    path = write(tmp_path / "0.parquet", [row | {"data_source": "ai2d"} for row in rows])
    records, (rejected,) = convert(LlavaParquet(), path)
    assert [record["images"] for record in records] == [[b"a"], [b"b"], []]
    assert {record["source"] for record in records} == {"ai2d"}
    assert [record["source_id"] for record in records] == ["1", "1", "2"]
    assert texts(records[0]) == ["<image>\nWhat?", "A cat."]
    assert (rejected.id, rejected.reason) == ("0.parquet:3", "1 times <image> for 0 images")


def test_rows_without_turns_are_rejected(tmp_path, convert):
    rows = [{"image": None, "conversations": {"markdown": "# Title"}}]
    _, (rejected,) = convert(LlavaParquet(), write(tmp_path / "0.parquet", rows))
    assert rejected.reason == "conversations: a dict, expected a list"


def test_images_may_be_a_list(tmp_path, convert):
    images = [{"bytes": b"a", "path": None}, {"bytes": b"b", "path": None}]
    messages = [
        {"role": "user", "content": "<image> or <image>?"},
        {"role": "assistant", "content": "a"},
    ]
    path = write(tmp_path / "0.parquet", [{"images": images, "messages": messages}])
    ((record,), _) = convert(LlavaParquet(source="x"), path)
    assert record["images"] == [b"a", b"b"] and record["source"] == "x"


def test_other_parquet_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no column conversations or messages"):
        LlavaParquet().units(write(tmp_path / "0.parquet", [{"text": "x"}]))
