import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mm1_jax.data.ingest.formats.cauldron import Cauldron

IMAGE = {"bytes": b"a", "path": None}


def text(question, answer="yes", source="vqav2"):
    return {"user": question, "assistant": answer, "source": source}


def write(folder, rows):
    pq.write_table(pa.Table.from_pylist(rows), folder / "0.parquet")
    return folder / "0.parquet"


def test_all_images_precede_the_questions(tmp_path, convert, texts):
    rows = [
        {"images": [IMAGE, IMAGE], "texts": [text("one?"), text("two?", "no")]},
        {"images": [], "texts": [text("three?")]},
        {"images": [IMAGE], "texts": [text("what is <image>?")]},
        {"images": [IMAGE], "texts": [text("four?", "")]},
        {"images": [IMAGE], "texts": []},
        {"images": None, "texts": None},
    ]
    records, rejected = convert(Cauldron(), write(tmp_path, rows))
    assert [record["images"] for record in records] == [[b"a", b"a"], []]
    assert texts(records[0]) == ["one?", "yes", "two?", "no"]
    assert {record["source"] for record in records} == {"vqav2"}
    assert [item.reason for item in rejected] == [
        "<image> in a text of a layout without placeholders",
        "no answer that is not blank",
        "no answer that is not blank",
        "no texts, expected a list",
    ]


def test_questions_of_finevision_with_a_low_rating_are_dropped(tmp_path, convert, texts, counts):
    rows = [
        {"images": [IMAGE], "texts": [text(name) for name in "abc"], "relevance_ratings": ratings}
        for ratings in ([5, 2, None], [1, 1, 2], None, [5])
    ]
    path = write(tmp_path, rows)
    form = Cauldron(min_relevance=3, source="fine")
    records, rejected = convert(form, path)
    assert [texts(record)[::2] for record in records] == [["a", "c"], ["a", "b", "c"]]
    assert [item.reason for item in rejected] == [
        "no question with the least ratings",
        "1 relevance_ratings for 3 texts",
    ]
    assert counts(form, path) == {"low_rated_questions": 1}
    assert len(convert(Cauldron(), path)[0]) == 4
    with pytest.raises(ValueError, match="no column formatting_ratings"):
        Cauldron(min_formatting=2).units(path)
