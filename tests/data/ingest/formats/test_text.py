import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from mm1_jax.data.ingest.formats import text as text_module
from mm1_jax.data.ingest.formats.text import PlainText
from mm1_jax.data.readers.source_files import Unit


def test_every_kind_of_file_is_read(tmp_path, convert):
    (tmp_path / "a.jsonl").write_text('{"text": "one", "id": "x"}\n')
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(b'{"text": "two"}\n{"text": "three"}'))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(b'{"text": "four"}'))
    table = pa.table({"text": ["five", "six"], "id": [7, 8], "other": [1.0, 2.0]})
    pq.write_table(table, tmp_path / "d.parquet", row_group_size=1)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "e.txt").write_text("seven\n")
    (tmp_path / "deep" / "f.txt.gz").write_bytes(gzip.compress(b"eight"))
    (tmp_path / "f.txt.zst").write_bytes(zstandard.compress(b"nine"))
    (tmp_path / "readme.rst").write_text("not text")
    records, rejected = convert(PlainText(), tmp_path)
    assert rejected == []
    assert {record["id"]: record["text"] for record in records} == {
        "a.jsonl:1": "one",
        "b.json.gz:1": "two",
        "b.json.gz:2": "three",
        "c.jsonl.zst:1": "four",
        "d.parquet:0": "five",
        "d.parquet:1": "six",
        "deep/e.txt": "seven\n",
        "deep/f.txt.gz": "eight",
        "f.txt.zst": "nine",
    }
    sources = {record["id"]: record.get("source_id") for record in records}
    assert (sources["a.jsonl:1"], sources["d.parquet:1"]) == ("x", "8")
    for name in ("a.jsonl", "b.json.gz", "d.parquet", "deep/e.txt", "f.txt.zst"):
        alone, _ = convert(PlainText(), tmp_path / name)
        texts = [record["text"] for record in records if record["id"].startswith(name)]
        assert [record["text"] for record in alone] == texts


def test_the_field_may_have_another_name(tmp_path, convert):
    (tmp_path / "a.jsonl").write_text('{"content": "one", "text": "wrong"}\n{"text": "two"}')
    pq.write_table(pa.table({"content": ["three"]}), tmp_path / "b.parquet")
    records, (rejected,) = convert(PlainText(field="content"), tmp_path)
    assert [record["text"] for record in records] == ["one", "three"]
    assert (rejected.id, rejected.reason) == ("a.jsonl:2", "no text, expected a string")
    with pytest.raises(ValueError, match="no column text; there are 'content'"):
        PlainText().units(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"[]", "a list, expected a JSON object"),
        (b'{"text": 7}', "a int, expected a string"),
        (b'{"text": null}', "no text"),
        (b'{"text": " \\n"}', "empty text"),
        (b'{"text": "caf\xe9"}', "not UTF-8"),
        (b'{"text": ' + b"[" * 5000, "not JSON"),
        (b'{"text": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"\0", "not JSON"),
    ],
)
def test_a_line_that_is_not_text_is_rejected_with_the_reason(tmp_path, convert, line, reason):
    good = b'{"text": "half of a pair: \\ud800, a NUL: \\u0000, NaN:", "x": NaN}'
    (tmp_path / "a.jsonl").write_bytes(line + b"\n" + good)
    (record,), (rejected,) = convert(PlainText(), tmp_path)
    assert record["id"] == "a.jsonl:2" and record["text"].startswith("half of a pair: \ud800, a")
    assert rejected.id == "a.jsonl:1" and reason in rejected.reason


def test_documents_that_are_not_text_are_rejected_with_the_reason(tmp_path, convert, reasons):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "b.txt").write_bytes(b"")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"text" * 1000)[:20])
    (tmp_path / "d.txt.zst").write_bytes(b"text")
    records, rejected = convert(PlainText(), tmp_path)
    assert records == [] and list(reasons(rejected)) == ["a.txt", "b.txt", "c.txt.gz", "d.txt.zst"]


def test_many_documents_are_several_units(tmp_path, convert, monkeypatch):
    monkeypatch.setattr(text_module, "_UNIT_DOCUMENTS", 2)
    for name in "abcde":
        (tmp_path / f"{name}.txt").write_text(name)
    assert PlainText().units(tmp_path) == [Unit(tmp_path, part) for part in range(3)]
    records, _ = convert(PlainText(), tmp_path)
    assert [record["text"] for record in records] == list("abcde")


def test_file_names_that_are_not_utf8_are_printable(tmp_path, convert):
    (tmp_path / "caf\udce9.txt").write_text("coffee")
    (record,), _ = convert(PlainText(), tmp_path)
    assert record["id"] == "caf\\udce9.txt"


def test_a_source_without_documents_is_an_error_that_names_the_expected_files(tmp_path):
    with pytest.raises(ValueError, match=r"expected text in .jsonl.*, .parquet, .txt"):
        PlainText().units(tmp_path)
    with pytest.raises(ValueError, match="no file or folder"):
        PlainText().units(tmp_path / "lost.txt")


@pytest.mark.parametrize(
    ("file", "num_records"),
    [("openstax/text.jsonl", 6), ("recipes/text.jsonl", 220), ("d2l/text.jsonl", 153)],
)
def test_real_texts_equal_the_parsed_json(test_data, convert, file, num_records):
    records, rejected = convert(PlainText(), test_data / file)
    lines = [json.loads(line) for line in (test_data / file).read_text().splitlines()]
    assert (len(records), rejected) == (num_records, [])
    assert [(one["source_id"], one["text"]) for one in records] == [
        (line["id"], line["text"]) for line in lines
    ]


MARKED = "one\n<|endoftext|>\ntwo<|endoftext|>\n\n<|endoftext|>three<|endoftext|>"


def test_a_text_is_split_at_end_of_text_marks(tmp_path, convert):
    """The mark separates concatenated documents; at the end of a file it ends the last one."""
    (tmp_path / "a.txt").write_text(MARKED)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": MARKED, "id": 7}))
    records, rejected = convert(PlainText(), tmp_path)
    assert rejected == []
    assert [(record["id"], record["text"]) for record in records] == [
        (f"{name}:{place}", text)
        for name in ("a.txt", "b.jsonl:1")
        for place, text in ((0, "one"), (1, "two"), (3, "three"))
    ]
    assert records[-1]["source_id"] == "7"
    (unit, _) = PlainText().units(tmp_path)
    (entry,) = PlainText().read(unit)
    assert entry.counts == {"end_of_document_marks": 4, "empty_documents": 2}


def test_the_end_of_text_mark_can_be_changed_or_disabled(tmp_path, convert):
    (tmp_path / "a.txt").write_text("one<|endoftext|>two</s>three")
    texts = {
        mark: [record["text"] for record in convert(PlainText(document_mark=mark), tmp_path)[0]]
        for mark in ("", "</s>")
    }
    assert texts == {
        "": ["one<|endoftext|>two</s>three"],
        "</s>": ["one<|endoftext|>two", "three"],
    }


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_a_document_in_another_encoding_is_rejected_with_the_reason(tmp_path, convert, encoding):
    (tmp_path / "a.txt").write_bytes("A caf\xe9 in the morning".encode(encoding))
    (tmp_path / "b.txt").write_bytes("A caf\xe9".encode("utf-8-sig"))
    (record,), (rejected,) = convert(PlainText(), tmp_path)
    assert record["text"] == "A caf\xe9"
    assert rejected.id == "a.txt" and rejected.reason.startswith("not UTF-8")
