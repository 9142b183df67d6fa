import gzip
import json

import pytest

from mm1_jax.data.ingest.formats.jsonl import Jsonl
from mm1_jax.data.record_files import RecordKind


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "ab":
        (tmp_path / "images" / name).write_bytes(name.encode())
    return tmp_path


def write(folder, *lines, name="records.jsonl"):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / name).write_text(text)
    return folder / name


CAPTIONS = {"image": "images/a", "captions": [{"kind": "alt", "text": "a cat"}, {"text": "b"}]}
PAGE = {"id": "p", "texts": ["one", None, None], "images": [None, "images/a", "images/lost"]}
CONVERSATION = {
    "images": ["images/a"],
    "turns": [{"role": "user", "text": "<image>?"}, {"role": "assistant", "text": "yes"}],
}
TEXT = {"id": 7, "text": "some text"}


@pytest.mark.parametrize(
    ("line", "kind", "record"),
    [
        (
            CAPTIONS,
            RecordKind.CAPTIONS,
            {
                "image": b"a",
                "captions": [{"text": "a cat", "kind": "alt"}, {"text": "b", "kind": "caption"}],
            },
        ),
        (
            {"image": "images/b", "caption": "b", "url": "http://x"},
            RecordKind.CAPTIONS,
            {"image": b"b", "captions": [{"text": "b", "kind": "caption"}], "url": "http://x"},
        ),
        (
            PAGE | {"urls": [None, "http://x", "http://y"]},
            RecordKind.INTERLEAVED,
            {
                "texts": ["one", None],
                "images": [None, b"a"],
                "urls": [None, "http://x"],
                "missing_images": 1,
                "source_id": "p",
            },
        ),
        (CONVERSATION, RecordKind.CONVERSATIONS, CONVERSATION | {"images": [b"a"]}),
        (TEXT, RecordKind.TEXT, {"text": "some text", "source_id": "7"}),
    ],
)
def test_the_kind_is_inferred_from_the_fields(folder, convert, line, kind, record):
    write(folder, "not json", line)
    form = Jsonl()
    (found,), (rejected,) = convert(form, folder)
    assert found == record | {"id": "records.jsonl:2"}
    assert form.kind is kind and rejected.id == "records.jsonl:1"


def test_files_of_mixed_kinds_need_the_option(folder, convert):
    write(folder, CAPTIONS, name="captions.jsonl")
    write(folder, TEXT, name="text.jsonl")
    with pytest.raises(
        ValueError, match="captions in captions.jsonl, text in text.jsonl; name one"
    ):
        Jsonl().units(folder)
    ((record,), rejected) = convert(Jsonl(kind="text"), folder)
    assert record["text"] == "some text" and rejected == []
    ((record,), _) = convert(Jsonl(kind=RecordKind.CAPTIONS), folder)
    assert record["image"] == b"a"
    with pytest.raises(ValueError, match="none of the files holds interleaved"):
        Jsonl(kind="interleaved").units(folder)
    with pytest.raises(ValueError, match="kind='pictures'; expected one of captions"):
        Jsonl(kind="pictures")


def test_the_kind_is_unknown_until_files_are_read(folder):
    with pytest.raises(ValueError, match="unknown before `units` is called"):
        _ = Jsonl().kind
    write(folder, {"a": 1}, "[]", "{")
    with pytest.raises(ValueError, match="one of the fields caption, captions, text, texts, turns"):
        Jsonl().units(folder)


@pytest.mark.parametrize(
    ("good", "bad", "reason"),
    [
        (CAPTIONS, {"image": "images/lost", "caption": "x"}, "there is no such file"),
        (CAPTIONS, {"image": "../secret", "caption": "x"}, "lies outside"),
        (CAPTIONS, {"caption": "x"}, "is not the name of a file"),
        (CAPTIONS, {"image": "images/a", "caption": " "}, "empty caption"),
        (CAPTIONS, {"image": "images/a", "caption": 7}, "a int, expected a string"),
        (CAPTIONS, {"image": "images/a", "captions": []}, "empty caption"),
        (CAPTIONS, {"image": "images/a", "captions": {}}, "a dict, expected a list"),
        (CAPTIONS, {"image": "images/a", "captions": ["x"]}, "a str, expected a JSON object"),
        (CAPTIONS, "[]", "a list, expected a JSON object"),
        (PAGE, {"texts": ["x"], "images": []}, "1 texts beside 0 images"),
        (PAGE, {"texts": ["x"], "images": ["images/a"]}, "place 0 has a text and an image"),
        (PAGE, {"texts": [7], "images": [None]}, "text 0: a int"),
        (PAGE, {"texts": [None], "images": ["images/lost"]}, "1 images are missing"),
        (PAGE, {"texts": ["x"]}, "not both lists"),
        (CONVERSATION, CONVERSATION | {"images": ["images/a"] * 2}, "1 times <image> for 2 images"),
        (CONVERSATION, CONVERSATION | {"images": ["images/lost"]}, "there is no such file"),
        (CONVERSATION, {"turns": [{"role": ["user"], "text": "x"}]}, "role ['user']; expected"),
        (TEXT, {"text": "\n"}, "empty text"),
        (TEXT, {"texts": "x"}, "no text"),
    ],
)
def test_a_line_that_is_not_a_record_is_rejected_with_the_reason(
    folder, convert, good, bad, reason
):
    (folder.parent / "secret").write_bytes(b"secret")
    write(folder, good, bad, good)
    records, (rejected,) = convert(Jsonl(), folder)
    assert [record["id"] for record in records] == ["records.jsonl:1", "records.jsonl:3"]
    assert rejected.id == "records.jsonl:2" and reason in rejected.reason


def test_a_link_out_of_the_folder_is_refused(folder, convert):
    (folder.parent / "secret").write_bytes(b"secret")
    (folder / "images" / "link").symlink_to(folder.parent / "secret")
    (folder / "images" / "circle").symlink_to(folder / "images" / "circle")
    lines = [CAPTIONS | {"image": f"images/{name}"} for name in ("link", "circle")]
    write(folder, *lines)
    records, rejected = convert(Jsonl(), folder)
    assert records == [] and len(rejected) == 2


def test_lines_may_be_compressed(folder, convert):
    path = write(folder, CAPTIONS)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    records, _ = convert(Jsonl(), folder)
    assert [record["id"] for record in records] == ["b.jsonl.gz:1", "records.jsonl:1"]


@pytest.mark.parametrize(
    ("file", "num_records", "num_images"),
    [
        ("openstax/captions.jsonl", 910, 910),
        ("openstax/interleaved.jsonl", 216, 710),
        ("openstax/text.jsonl", 6, 0),
        ("recipes/interleaved.jsonl", 108, 127),
        ("recipes/text.jsonl", 220, 0),
        ("d2l/interleaved.jsonl", 16, 51),
        ("d2l/text.jsonl", 153, 0),
    ],
)
def test_real_lines_equal_the_parsed_json(test_data, convert, file, num_records, num_images):
    path = test_data / file
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    names = [name for one in lines for name in one.get("images", [one.get("image")]) if name]
    assert (len(lines), len(names)) == (num_records, num_images)
    records, rejected = convert(Jsonl(), path)
    assert (len(records), rejected) == (num_records, [])
    found = [image for one in records for image in one.get("images", [one.get("image")]) if image]
    assert found == [(path.parent / name).read_bytes() for name in names]
    for record, line in zip(records, lines, strict=True):
        for field in {"texts", "text"} & line.keys():
            assert record[field] == line[field]
        if "captions" in line:
            assert record["captions"] == [
                {"text": one["text"], "kind": one["kind"]} for one in line["captions"]
            ]


NAN = float("nan")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (
            {"image": "images/a", "captions": [None, {"text": None}, {"text": "b"}, {"text": NAN}]},
            {"captions": [{"text": "b", "kind": "caption"}]},
        ),
        (
            {"texts": ["one", "", NAN], "images": [NAN, "images/a", ""]},
            {"texts": ["one", None], "images": [None, b"a"], "missing_images": 1},
        ),
        (
            {"turns": [None, *CONVERSATION["turns"], {"role": "user", "text": NAN}]},
            {"turns": CONVERSATION["turns"]},
        ),
    ],
)
def test_a_missing_list_entry_rejects_no_other(folder, convert, line, found):
    write(folder, CONVERSATION | line if "turns" in line else line)
    ((record,), rejected) = convert(Jsonl(), folder)
    assert rejected == [] and {name: record[name] for name in found} == found
