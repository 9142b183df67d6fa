import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from obelics_parquet import write

from mm1_jax.data.ingest.formats.obelics import Obelics

STRUCT = pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "abc":
        (tmp_path / "images" / name).write_bytes(name.encode())
    (tmp_path / "images" / "empty").write_bytes(b"")
    names = {f"http://x/{name}": f"images/{name}" for name in ("a", "b", "c", "empty", "lost")}
    names |= {"http://x/out": "../secret", "http://x/odd": 7}
    (tmp_path / "url_to_file.json").write_text(json.dumps(names))
    (tmp_path.parent / "secret").write_bytes(b"secret")
    return tmp_path


def test_urls_become_the_pictures_of_the_map(folder, convert):
    about = json.dumps({"url": "http://page"})
    rows = [
        {
            "images": [None, "http://x/a", None, "http://x/b"],
            "texts": ["one", None, "two", None],
            "general_metadata": about,
        }
    ]
    write(folder / "0.parquet", rows)
    (record,), rejected = convert(Obelics(), folder)
    assert rejected == []
    assert record == {
        "id": "0.parquet:0",
        "texts": ["one", None, "two", None],
        "images": [None, b"a", None, b"b"],
        "urls": [None, "http://x/a", None, "http://x/b"],
        "missing_images": 0,
        "source_id": "http://page",
    }


def test_a_picture_that_is_not_to_be_had_is_left_out_and_counted(folder, convert):
    urls = ["http://x/empty", "http://x/lost", "http://x/out", "http://x/odd", "http://unknown"]
    rows = [{"images": [None, *urls, "http://x/c", None], "texts": ["t", *[None] * 7]}]
    write(folder / "0.parquet", rows)
    (record,), _ = convert(Obelics(), folder)
    # The last place has neither text nor picture.
    assert record["missing_images"] == 6
    assert (record["texts"], record["images"]) == (["t", None], [None, b"c"])
    assert record["urls"] == [None, "http://x/c"]


def test_a_page_that_is_no_page_says_why(folder, convert):
    rows = [
        {"images": ["http://x/lost"], "texts": [None]},
        {"images": [], "texts": []},
        {"images": [None], "texts": ["a", "b"]},
        {"images": ["http://x/a"], "texts": ["both"]},
        {"images": None, "texts": ["a"]},
        {"images": [None], "texts": [" "]},
        {"images": [None], "texts": ["good"], "metadata": "{", "general_metadata": "[" * 9999},
    ]
    write(folder / "0.parquet", rows)
    (record,), rejected = convert(Obelics(), folder)
    assert record["texts"] == ["good"]
    assert [one.reason for one in rejected] == [
        "an empty page; 1 images are missing",
        "an empty page",
        "2 texts beside 1 images",
        "place 0 has a text and an image",
        "texts and images are not both lists",
        "an empty page",
    ]


def test_pictures_may_be_structs_of_bytes_or_paths(tmp_path, convert):
    (tmp_path / "b").write_bytes(b"b")
    images = [{"bytes": b"a", "path": None}, None, {"bytes": None, "path": "b"}, {"bytes": b""}]
    metadata = json.dumps([{"src": "http://x/a"}, None, {"src": 7}, None])
    row = {"images": images, "texts": [None, "t", None, None], "metadata": metadata}
    write(tmp_path / "0.parquet", [row], STRUCT)
    (record,), _ = convert(Obelics(), tmp_path)
    assert record["images"] == [b"a", None, b"b"] and record["missing_images"] == 1
    assert record["urls"] == ["http://x/a", None, None]


def test_urls_without_a_map_are_an_error_that_names_the_option(tmp_path, folder):
    shards = tmp_path / "shards"
    shards.mkdir()
    write(shards / "0.parquet", [{"images": ["http://x/a"], "texts": [None]}])
    with pytest.raises(ValueError, match=r"images has to be a JSON map.*url_to_file.json"):
        Obelics().units(shards)
    with pytest.raises(ValueError, match="images has to be"):
        Obelics(images=shards / "nowhere").units(shards)
    (shards / "map.json").write_text("[]")
    with pytest.raises(ValueError, match="a list, expected a JSON object"):
        Obelics(images=shards / "map.json").units(shards)


def test_the_map_may_be_elsewhere(tmp_path, folder, convert):
    shards = tmp_path / "shards"
    shards.mkdir()
    write(shards / "0.parquet", [{"images": ["http://x/a"], "texts": [None]}])
    for images in (folder, folder / "url_to_file.json", str(folder)):
        ((record,), _) = convert(Obelics(images=images), shards)
        assert record["images"] == [b"a"]


def test_real_pages_are_what_pyarrow_reads(test_data, convert):
    source = test_data / "formats" / "obelics_parquet"
    records, rejected = convert(Obelics(), source)
    rows = pq.read_table(source / "obelics-00000-of-00001.parquet").to_pylist()
    files = json.loads((source / "url_to_file.json").read_text())
    assert (len(rows), rejected) == (10, [])
    for record, row in zip(records, rows, strict=True):
        assert record["texts"] == row["texts"] and record["urls"] == row["images"]
        assert record["images"] == [
            None if url is None else (source / files[url]).read_bytes() for url in row["images"]
        ]
    assert sum(image is not None for record in records for image in record["images"]) == 30
