import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mm1_jax.data.ingest.formats.img2dataset_parquet import Img2datasetParquet
from mm1_jax.data.readers.source_files import Unit


def write(path, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, **options)


def row(number, **fields):
    return {
        "key": f"{number:09}",
        "jpg": f"picture {number}".encode(),
        "txt": f"caption {number}",
        "url": f"http://x/{number}",
        "status": "success",
        "error_message": None,
    } | fields


def test_row_groups_are_units_and_rows_are_captions(tmp_path, convert):
    write(tmp_path / "b.parquet", [row(i) for i in range(10)], row_group_size=4)
    write(tmp_path / "a.parquet", [row(10)])
    units = Img2datasetParquet().units(tmp_path)
    assert units == [
        Unit(tmp_path / "a.parquet"),
        *(Unit(tmp_path / "b.parquet", part) for part in range(3)),
    ]
    records, rejected = convert(Img2datasetParquet(caption_kind="alt"), tmp_path)
    assert rejected == []
    assert [one["id"] for one in records] == ["a.parquet:0", *(f"b.parquet:{i}" for i in range(10))]
    assert records[-1] == {
        "id": "b.parquet:9",
        "image": b"picture 9",
        "captions": [{"text": "caption 9", "kind": "alt"}],
        "url": "http://x/9",
        "source_id": "000000009",
    }


def test_failed_rows_are_rejected_with_the_reason(tmp_path, convert, reasons):
    rows = [
        row(0, status="failed_to_download", error_message="HTTP Error 404", jpg=None),
        row(1, status="failed_to_resize", jpg=None),
        row(2, txt=" "),
        row(3, txt=None),
        row(4, jpg=b""),
        row(5, jpg=None),
        row(6),
    ]
    write(tmp_path / "a.parquet", rows)
    (record,), rejected = convert(Img2datasetParquet(), tmp_path)
    assert record["id"] == "a.parquet:6"
    assert reasons(rejected) == {
        "a.parquet:0": "failed_to_download: HTTP Error 404",
        "a.parquet:1": "failed_to_resize",
        "a.parquet:2": "empty caption",
        "a.parquet:3": "no caption, expected a string",
        "a.parquet:4": "the image is empty",
        "a.parquet:5": "no image",
    }


def test_other_encodings_and_column_names_are_accepted(tmp_path, convert):
    write(tmp_path / "a.parquet", [{"webp": b"1", "caption": "a"}])
    write(tmp_path / "b.parquet", [{"png": b"2", "caption": "b", "width": 7}])
    records, _ = convert(Img2datasetParquet(), tmp_path)
    assert [one["image"] for one in records] == [b"1", b"2"]


def test_columns_of_other_types_are_rejected(tmp_path, convert):
    write(tmp_path / "a.parquet", [{"jpg": "text", "txt": "a"}, {"jpg": "text", "txt": "b"}])
    write(tmp_path / "b.parquet", [{"jpg": b"1", "txt": 7}])
    records, rejected = convert(Img2datasetParquet(), tmp_path)
    assert records == []
    assert [one.reason for one in rejected] == [
        *("the image is a str", "the image is a str", "caption: a int, expected a string"),
    ]


def test_a_string_that_is_not_utf8_rejects_only_its_row(tmp_path, convert):
    texts = pa.Array.from_buffers(
        pa.string(), 3, pa.array([b"good", b"caf\xe9", b"best"]).buffers()
    )
    table = pa.table({"jpg": [b"1", b"2", b"3"], "txt": texts})
    pq.write_table(table, tmp_path / "a.parquet")
    records, (rejected,) = convert(Img2datasetParquet(), tmp_path)
    assert [one["id"] for one in records] == ["a.parquet:0", "a.parquet:2"]
    assert rejected.id == "a.parquet:1" and "UnicodeDecodeError" in rejected.reason


def test_parquet_of_another_layout_is_an_error_that_names_the_columns(tmp_path):
    write(tmp_path / "a.parquet", [{"url": "x", "caption": "y"}])
    with pytest.raises(
        ValueError, match=r"no column jpg or jpeg or png or webp; .*'url', 'caption'"
    ):
        Img2datasetParquet().units(tmp_path)


def test_a_file_of_another_layout_among_good_ones_is_rejected(tmp_path, convert):
    write(tmp_path / "a.parquet", [row(0)])
    write(tmp_path / "b.parquet", [{"url": "x"}])
    (tmp_path / "c.parquet").write_bytes(b"PAR1 nothing PAR1")
    (tmp_path / "d.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-50])
    records, rejected = convert(Img2datasetParquet(), tmp_path)
    assert [one["id"] for one in records] == ["a.parquet:0"]
    assert [one.id for one in rejected] == ["b.parquet:0", "c.parquet:0", "d.parquet:0"]


def test_damage_inside_a_row_group_reports_the_number_of_lost_rows(tmp_path, convert):
    path = tmp_path / "a.parquet"
    write(path, [row(i) for i in range(8)], row_group_size=4, compression="zstd")
    group = pq.ParquetFile(path).metadata.row_group(1).column(1)
    data = bytearray(path.read_bytes())
    start = group.dictionary_page_offset or group.data_page_offset
    data[start : start + group.total_compressed_size] = bytes(group.total_compressed_size)
    path.write_bytes(data)
    records, (rejected,) = convert(Img2datasetParquet(), tmp_path)
    assert len(records) == 4
    assert rejected.id == "a.parquet:4" and "4 rows of row group 1 are not read" in rejected.reason


def test_real_rows_equal_those_of_pyarrow(test_data, convert):
    source = test_data / "formats" / "img2dataset_parquet"
    records, rejected = convert(Img2datasetParquet(), source)
    rows = pq.read_table(source / "00000.parquet").to_pylist()
    assert (len(rows), rejected) == (16, [])
    assert [(one["source_id"], one["image"], one["captions"][0]["text"]) for one in records] == [
        (row["key"], row["jpg"], row["txt"]) for row in rows
    ]


def test_several_columns_are_captions_of_several_kinds(tmp_path, convert):
    write(tmp_path / "a.parquet", [row(0, recaption="one"), row(1, recaption=None)])
    form = Img2datasetParquet(captions="txt=alt,recaption=synthetic")
    records, rejected = convert(form, tmp_path)
    assert rejected == []
    assert [[caption["text"] for caption in record["captions"]] for record in records] == [
        ["caption 0", "one"],
        ["caption 1"],
    ]
    with pytest.raises(ValueError, match="no column lost"):
        Img2datasetParquet(captions="txt=alt,lost=synthetic").units(tmp_path)
