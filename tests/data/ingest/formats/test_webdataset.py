import io
import json
import os
import tarfile

import pyarrow.parquet as pq
import pytest

from mm1_jax.data.ingest.formats.webdataset import Webdataset
from mm1_jax.data.readers.entries import HIDDEN


def write_shard(path, files):
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def sample(key, caption="a cat", image=b"picture", extension="jpg", **about):
    about = json.dumps({"caption": caption, "url": f"http://x/{key}", **about})
    return [(f"{key}.{extension}", image), (f"{key}.json", about), (f"{key}.txt", caption)]


def test_samples_are_captions_with_their_url(tmp_path, convert):
    write_shard(tmp_path / "00001.tar", sample("000010000", "b", b"2", "webp"))
    write_shard(tmp_path / "00000.tar", sample("000000000", "a", b"1") + sample("000000001", "c"))
    (tmp_path / "00000.parquet").write_bytes(b"")
    (tmp_path / "00000_stats.json").write_text("{}")
    records, rejected = convert(Webdataset(caption_kind="alt"), tmp_path)
    assert rejected == []
    assert [record["id"] for record in records] == [
        *("00000.tar:000000000", "00000.tar:000000001", "00001.tar:000010000")
    ]
    assert records[0] == {
        "id": "00000.tar:000000000",
        "image": b"1",
        "captions": [{"text": "a", "kind": "alt"}],
        "url": "http://x/000000000",
        "source_id": "000000000",
    }
    assert records[2]["image"] == b"2"


def test_the_caption_in_the_json_is_used_if_there_is_no_text(tmp_path, convert):
    write_shard(tmp_path / "a.tar", sample("0", "from json")[:2])
    (record,), rejected = convert(Webdataset(), tmp_path / "a.tar")
    assert record["captions"] == [{"text": "from json", "kind": "caption"}] and not rejected


def test_an_incomplete_sample_names_the_missing_part(tmp_path, convert, reasons):
    files = [
        *sample("empty caption", " \n"),
        *sample("empty image", image=b""),
        *sample("no image")[1:],
        *sample("no caption", extension="png")[:1],
        *sample("bad json")[:1],
        ("bad json.json", "{"),
        *sample("other json")[:1],
        ("other json.json", "[]"),
        *sample("no utf8")[:1],
        ("no utf8.txt", b"caf\xe9"),
        *sample("two images"),
        ("two images.png", b"x"),
        ("README", "no extension"),
        *sample("good"),
        # The members of "good" are not adjacent.
        *sample("empty caption"),
        ("good.txt", "again"),
        ("good.TXT", "again"),
    ]
    write_shard(tmp_path / "a.tar", files)
    (record,), rejected = convert(Webdataset(), tmp_path)
    assert record["id"] == "a.tar:good"
    found = reasons(rejected)
    expected = {
        "empty caption": "empty caption",
        "empty image": "image is empty",
        "no image": "no image",
        "no caption": "no caption",
        "bad json": "not JSON",
        "other json": "a list, expected a JSON object",
        "no utf8": "not UTF-8",
        "two images": "2 images",
        "README": "without an extension",
        "good.txt": "second time",
        "good.TXT": "second time",
        "empty caption.jpg": "before",
        "empty caption.json": "before",
        "empty caption.txt": "before",
    }
    assert found.keys() == {f"a.tar:{key}" for key in expected}
    for key, reason in expected.items():
        assert reason in found[f"a.tar:{key}"], key


def test_a_damaged_json_loses_only_the_url(tmp_path, convert):
    files = [("a.jpg", b"1"), ("a.json", b"\xff"), ("a.txt", "a cat"), ("a.cls", "7")]
    write_shard(tmp_path / "a.tar", files)
    (record,), rejected = convert(Webdataset(), tmp_path)
    assert "url" not in record and rejected == []


def test_keys_end_at_the_first_dot_of_the_file_name(tmp_path, convert):
    files = [("v1.0/a.jpg", b"1"), ("v1.0/a.txt", "a cat"), ("v1.0/a.seg.png", b"2")]
    write_shard(tmp_path / "a.tar", files)
    (record,), _ = convert(Webdataset(), tmp_path)
    assert record["source_id"] == "v1.0/a" and record["image"] == b"1"


def test_links_and_paths_that_leave_the_archive_are_ignored(tmp_path, convert, reasons):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    shard = tmp_path / "shards" / "a.tar"
    shard.parent.mkdir()
    with tarfile.open(shard, "w") as archive:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "../secret.jpg"
        archive.addfile(link)
        for name, data in (("a.txt", b"a cat"), ("../b.jpg", b"1"), ("../b.txt", b"a dog")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    before = sorted(tmp_path.rglob("*"))
    (record,), rejected = convert(Webdataset(), shard)
    assert record["image"] == b"1"
    assert reasons(rejected) == {
        "a.tar:a.jpg": "a symbolic link, expected a file",
        "a.tar:a": "no image",
    }
    assert sorted(tmp_path.rglob("*")) == before


def test_an_image_out_of_bounds_is_rejected_without_being_read(tmp_path, convert, monkeypatch):
    write_shard(tmp_path / "a.tar", sample("big", image=b"x" * 1000) + sample("small"))
    monkeypatch.setattr("mm1_jax.data.readers.tar.MAX_ENTRY_BYTES", 100)
    (record,), (rejected,) = convert(Webdataset(), tmp_path)
    assert record["id"] == "a.tar:small"
    assert (rejected.id, "more than 100" in rejected.reason) == ("a.tar:big", True)


def test_a_folder_without_shards_is_an_error_that_names_the_expected_files(tmp_path):
    with pytest.raises(ValueError, match=r"expected tar shards of WebDataset.*nothing of the kind"):
        Webdataset().units(tmp_path)
    with pytest.raises(ValueError, match="no file or folder"):
        Webdataset().units(tmp_path / "nowhere")


def test_shards_of_the_same_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_shard(tmp_path / folder / "0.tar", sample("0"))
    with pytest.raises(ValueError, match="the same name.*one at a time"):
        Webdataset().units(tmp_path)


def test_hidden_files_and_pipes_are_not_read_as_shards(tmp_path, convert):
    write_shard(tmp_path / "a.tar", sample("0"))
    (tmp_path / "._a.tar").write_bytes(b"x")
    os.mkfifo(tmp_path / "b.tar")
    assert [unit.path.name for unit in Webdataset().units(tmp_path)] == ["a.tar"]


def test_real_shards_equal_the_contents_of_tarfile_and_parquet(test_data, convert, reasons):
    source = test_data / "formats" / "img2dataset_webdataset"
    records, rejected = convert(Webdataset(), source)
    files = {}
    for path in sorted(source.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                files[member.name] = file.read()
    keys = [name.removesuffix(".jpg") for name in files if name.endswith(".jpg")]
    expected = {key: (files[f"{key}.jpg"], files[f"{key}.txt"].decode()) for key in keys}
    empty = {key for key, (_, text) in expected.items() if not text.strip()}
    assert (len(keys), len(empty)) == (47, 1)
    found = {one["source_id"]: (one["image"], one["captions"][0]["text"]) for one in records}
    assert found == {key: expected[key] for key in keys if key not in empty}
    assert reasons(rejected) == {f"00000.tar:{key}": "empty caption" for key in empty}
    rows = [row for path in source.glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    downloaded = {row["key"]: row["url"] for row in rows if row["status"] == "success"}
    assert len(rows) - len(downloaded) == 1
    assert {one["source_id"]: one["url"] for one in records} == {
        key: url for key, url in downloaded.items() if key not in empty
    }


def test_hidden_members_are_skipped_and_counted(tmp_path, convert):
    """tar on macOS adds a ._ file beside each file, and files of the Finder."""
    files = [
        (name, data)
        for file, data in sample("a/0") + sample("a/1")
        for name, data in (
            (file.replace("a/", "a/._"), b"\0\5\x16\7"),
            (f"__MACOSX/{file}", b"\0\5\x16\7"),
            (f"./{file}", data),
        )
    ]
    others = [("a/.DS_Store", b"x"), (".Trashes/2.jpg", b"x"), ("PaxHeaders.7/a/0.jpg", b"x")]
    write_shard(tmp_path / "a.tar", files + others)
    records, rejected = convert(Webdataset(), tmp_path)
    assert [record["source_id"] for record in records] == ["./a/0", "./a/1"] and rejected == []
    (unit,) = Webdataset().units(tmp_path)
    assert sum(item == HIDDEN for item in Webdataset().read(unit)) == 2 * 6 + 3


def test_a_placeholder_instead_of_a_shard_is_named(tmp_path, convert):
    for name, start in (
        ("a.tar", b"version https://git-lfs.github.com/spec/v1\n"),
        ("b.tar", b"\x1f\x8b\x08"),
        ("c.tar", b"\n<!DOCTYPE HTML>"),
    ):
        (tmp_path / name).write_bytes(start + bytes(600))
    # A valid shard may begin with these bytes, as the name of its first member.
    write_shard(tmp_path / "d.tar", sample("BZh"))
    (record,), rejected = convert(Webdataset(), tmp_path)
    assert record["source_id"] == "BZh"
    for item, said in zip(rejected, ("Git LFS", "gzip; unpack", "page of HTML"), strict=True):
        assert said in item.reason


def test_fields_of_the_json_are_captions_of_several_kinds(tmp_path, convert):
    samples = [
        *sample("0", "alt 0", recaption="a red cat"),
        *sample("1", "alt 1"),
        *sample("2", " ", recaption="two cats"),
    ]
    write_shard(tmp_path / "a.tar", samples)
    records, rejected = convert(Webdataset(captions="txt=alt,recaption=synthetic"), tmp_path)
    assert rejected == []
    assert [
        [(caption["kind"], caption["text"]) for caption in record["captions"]] for record in records
    ] == [
        [("alt", "alt 0"), ("synthetic", "a red cat")],
        [("alt", "alt 1")],
        [("synthetic", "two cats")],
    ]
