import base64
import gzip
import json
import zipfile

import pytest
import zstandard

from mm1_jax.data.ingest.formats.mmc4 import Mmc4


def image(name, index, similarity=0.3, **fields):
    return {
        "image_name": name,
        "matched_text_index": index,
        "matched_sim": similarity,
        "raw_url": f"http://x/{name}",
    } | fields


def page(*images, sentences=("one", "two", "three")):
    return {"text_list": list(sentences), "image_info": list(images), "url": "http://page"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "abc":
        (tmp_path / "images" / name).write_bytes(name.encode())
    (tmp_path / "images" / "empty").write_bytes(b"")
    return tmp_path


def write(folder, *pages):
    lines = (one if isinstance(one, str) else json.dumps(one) for one in pages)
    (folder / "docs.jsonl").write_text("\n".join(lines))


def test_a_picture_precedes_its_sentence(folder, convert):
    write(folder, page(image("a", 2), image("b", 0), image("c", 2)))
    (record,), rejected = convert(Mmc4(), folder)
    assert rejected == []
    assert record == {
        "id": "docs.jsonl:1",
        "texts": [None, "one", "two", None, None, "three"],
        "images": [b"b", None, None, b"a", b"c", None],
        "urls": ["http://x/b", None, None, "http://x/a", "http://x/c", None],
        "missing_images": 0,
        "dissimilar_images": 0,
        "source_id": "http://page",
    }


def test_pictures_with_low_similarity_are_dropped_and_counted(folder, convert):
    images = [image("a", 0, 0.24), image("b", 0, 0.2399), image("c", 0, float("nan"))]
    write(folder, page(*images, image("a", 1, 10**400)))
    (record,), _ = convert(Mmc4(), folder)
    assert [one for one in record["images"] if one] == [b"a", b"a"]
    assert (record["dissimilar_images"], record["missing_images"]) == (2, 0)
    (record,), _ = convert(Mmc4(min_similarity=0.1), folder)
    assert record["dissimilar_images"] == 1


def test_missing_pictures_are_counted(folder, convert):
    names = ["empty", "lost", "../docs.jsonl", "/etc/passwd", "a\0", "\ud800", None, 7, "x" * 5000]
    write(folder, page(image("a", 0), *(image(name, 1) for name in names)))
    (record,), _ = convert(Mmc4(), folder)
    assert record["images"] == [b"a", None, None, None]
    assert record["missing_images"] == len(names)


def test_pictures_may_be_embedded_in_the_lines(folder, convert):
    data = base64.b64encode(b"inlined").decode()
    images = [image("a", 0, image_base64=data), image("a", 0, image_base64="%"), image("b", 0)]
    write(folder, page(*images, image("a", 1, image_base64=None)))
    (record,), _ = convert(Mmc4(), folder)
    assert [one for one in record["images"] if one] == [b"inlined", b"b"]
    assert record["missing_images"] == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "a list, expected a JSON object"),
        (page(image("a", 3)), "image 0: sentence 3 of 3"),
        (page(image("a", -1)), "sentence -1 of 3"),
        (page(image("a", True)), "sentence True of 3"),
        (page(image("a", 0), image("a", 0, "0.3")), "image 1: matched_sim='0.3'"),
        (page(image("a", 0, None)), "matched_sim=None"),
        (page(7), "a int, expected a JSON object"),
        (page(sentences=["a", 7]), "sentence: a int, expected a string"),
        (page() | {"text_list": None}, "no text_list"),
        (page() | {"image_info": {}}, "image_info: a dict, expected a list"),
        (page(sentences=[]), "an empty page"),
    ],
)
def test_a_line_that_is_not_a_page_is_rejected_with_the_reason(folder, convert, line, reason):
    write(folder, line, page(image("a", 0)))
    (record,), (rejected,) = convert(Mmc4(), folder)
    assert record["id"] == "docs.jsonl:2"
    assert rejected.id == "docs.jsonl:1" and reason in rejected.reason


def test_shards_may_be_compressed(folder, convert):
    write(folder, page(image("a", 0)), page(image("b", 1)))
    plain = folder / "docs.jsonl"
    content = plain.read_bytes()
    expected, _ = convert(Mmc4(), plain)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(content))
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(content))
    with zipfile.ZipFile(folder / "d.jsonl.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(plain, "docs.jsonl")
    records, rejected = convert(Mmc4(), folder)
    assert (len(records), rejected) == (8, [])
    without_id = [record | {"id": ""} for record in records]
    assert without_id == [record | {"id": ""} for record in expected] * 4


def test_pictures_may_be_in_another_folder(folder, convert, tmp_path):
    write(folder, page(image("a", 0)))
    other = tmp_path / "other"
    other.mkdir()
    (other / "a").write_bytes(b"other")
    (record,), _ = convert(Mmc4(images=other), folder)
    assert record["images"][0] == b"other"
    with pytest.raises(ValueError, match="neither a folder nor a .tar file"):
        Mmc4(images=other / "lost").units(folder)


def test_real_pages_equal_the_contents_of_the_zip(test_data, convert):
    source = test_data / "formats" / "mmc4"
    records, rejected = convert(Mmc4(), source)
    with zipfile.ZipFile(source / "docs_no_face_shard_0_v2.jsonl.zip") as archive:
        pages = [json.loads(line) for line in archive.read(archive.namelist()[0]).splitlines()]
    assert (len(pages), rejected) == (10, [])
    for record, one in zip(records, pages, strict=True):
        assert [text for text in record["texts"] if text is not None] == one["text_list"]
        good = [info for info in one["image_info"] if info["matched_sim"] >= 0.24]
        assert record["dissimilar_images"] == len(one["image_info"]) - len(good)
        for info in good:
            place = record["texts"].index(one["text_list"][info["matched_text_index"]])
            data = (source / "images" / info["image_name"]).read_bytes()
            assert record["images"][place - 1] == data
    assert sum(image is not None for record in records for image in record["images"]) == 30


def test_a_missing_sentence_or_picture_rejects_no_other(folder, convert):
    write(folder, page(image("a", 1), None, sentences=("one", None, "three")))
    ((record,), rejected) = convert(Mmc4(), folder)
    assert record["texts"] == ["one", None, "three"] and rejected == []
    assert record["images"] == [None, b"a", None]
