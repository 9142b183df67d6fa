import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mm1_jax.data.ingest.formats.hf_captions import HfCaptions

STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def write(path, images, captions, names=("image", "caption"), **others):
    pq.write_table(
        pa.table({names[1]: captions, names[0]: pa.array(images, STRUCT)} | others), path
    )


def stored(data=None, path=None):
    return {"bytes": data, "path": path}


def test_structs_of_bytes_or_of_a_path_are_pictures(tmp_path, convert):
    (tmp_path / "b.jpg").write_bytes(b"2")
    images = [stored(b"1", "a.jpg"), stored(None, "b.jpg")]
    write(tmp_path / "a.parquet", images, ["a", "b"], url=["http://x", None])
    records, rejected = convert(HfCaptions(caption_kind="synthetic"), tmp_path)
    assert rejected == []
    assert records == [
        {
            "id": "a.parquet:0",
            "image": b"1",
            "captions": [{"text": "a", "kind": "synthetic"}],
            "url": "http://x",
        },
        {"id": "a.parquet:1", "image": b"2", "captions": [{"text": "b", "kind": "synthetic"}]},
    ]


def test_a_list_is_several_captions(tmp_path, convert):
    write(tmp_path / "a.parquet", [stored(b"1")], [["a", " ", "b"]], ("image", "sentences"))
    (record,), _ = convert(HfCaptions(), tmp_path)
    assert [caption["text"] for caption in record["captions"]] == ["a", "b"]


def test_columns_may_be_named(tmp_path, convert):
    write(
        tmp_path / "a.parquet",
        [stored(b"1")],
        ["wrong"],
        ("photo", "text"),
        title=["right"],
    )
    form = HfCaptions(image_column="photo", caption_column="title")
    (record,), _ = convert(form, tmp_path)
    assert record["captions"][0]["text"] == "right"
    with pytest.raises(
        ValueError, match="no column image or .*; there are 'text', 'photo', 'title'"
    ):
        HfCaptions().units(tmp_path)
    with pytest.raises(ValueError, match="no column lost; there are"):
        HfCaptions(image_column="lost").units(tmp_path)


def test_rows_that_are_not_captions_are_rejected_with_the_reason(tmp_path, convert, reasons):
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    images = [
        *(None, stored(), stored(b""), stored(None, "../secret"), stored(None, "lost")),
        *(stored(b"1"), stored(b"1"), stored(b"1")),
    ]
    write(folder / "a.parquet", images, [*["x"] * 5, "", None, "good"])
    (record,), rejected = convert(HfCaptions(), folder)
    assert record["id"] == "a.parquet:7"
    assert list(reasons(rejected).values()) == [
        "no image",
        "image None is not the name of a file",
        "the image is empty",
        "image '../secret' lies outside the folder of images",
        "image 'lost': there is no such file",
        "empty caption",
        "no caption, expected a string",
    ]


def test_a_picture_of_another_type_is_rejected(tmp_path, convert):
    pq.write_table(pa.table({"image": ["x", "y"], "text": ["a", "b"]}), tmp_path / "a.parquet")
    _, rejected = convert(HfCaptions(), tmp_path)
    assert [one.reason for one in rejected] == ["an image of type str"] * 2


def test_real_rows_of_img2dataset_are_accepted(test_data, convert):
    source = test_data / "formats" / "img2dataset_parquet"
    records, rejected = convert(HfCaptions(), source)
    rows = pq.read_table(source / "00000.parquet").to_pylist()
    assert [record["image"] for record in records] == [row["jpg"] for row in rows]
    assert rejected == []


@pytest.mark.parametrize("blank", [None, "", " "])
def test_a_missing_caption_rejects_no_other(tmp_path, convert, blank):
    captions = [["one", blank, "two"], [blank, "three"], [blank, blank]]
    write(tmp_path / "a.parquet", [stored(b"1")] * 3, captions)
    records, rejected = convert(HfCaptions(), tmp_path)
    found = [[caption["text"] for caption in record["captions"]] for record in records]
    assert found == [["one", "two"], ["three"]]
    assert [one.id for one in rejected] == ["a.parquet:2"]


def test_several_columns_are_captions_of_several_kinds(tmp_path, convert):
    write(
        tmp_path / "a.parquet",
        [stored(b"1"), stored(b"2")],
        ["alt 1", None],
        recaption=["one", "two"],
    )
    form = HfCaptions(captions="caption=alt,recaption=synthetic")
    records, rejected = convert(form, tmp_path)
    assert rejected == []
    assert [record["captions"] for record in records] == [
        [{"text": "alt 1", "kind": "alt"}, {"text": "one", "kind": "synthetic"}],
        [{"text": "two", "kind": "synthetic"}],
    ]
    with pytest.raises(ValueError, match="no column lost; there are"):
        HfCaptions(captions="caption=alt,lost=synthetic").units(tmp_path)
    with pytest.raises(ValueError, match="captions=caption: expected FIELD=KIND,FIELD=KIND"):
        HfCaptions(captions="caption")
