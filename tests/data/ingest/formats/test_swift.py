import base64
import json

import pytest

from mm1_jax.data.ingest.formats.swift import Swift


@pytest.fixture
def folder(tmp_path, picture):
    (tmp_path / "a.png").write_bytes(picture(200, 100))
    (tmp_path / "b.png").write_bytes(picture(50, 50))
    return tmp_path


def write(folder, *lines):
    (folder / "swift.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "swift.jsonl"


def said(question, answer, **fields):
    turns = [("user", question), ("assistant", answer)]
    return {"messages": [{"role": role, "content": text} for role, text in turns]} | fields


def test_objects_replace_their_placeholders(folder, convert, texts):
    objects = {
        "ref": ["cat", "dog"],
        "bbox": [[50, 25, 100, 100], [25, 50]],
        "image_id": [0, 1],
    }
    line = said(
        "<image><image>Find <ref-object> and <ref-object>",
        "<bbox> and <bbox>",
        images=["a.png", "b.png"],
        objects=objects,
    )
    ((record,), rejected) = convert(Swift(), write(folder, line))
    assert rejected == []
    assert texts(record) == ["<image><image>Find cat and dog", "<box> and <point>"]
    assert record["boxes"] == [
        {"image": 0, "box": [0.25, 0.25, 0.5, 1.0]},
        {"image": 1, "point": [0.5, 1.0]},
    ]


def test_norm1_boxes_are_fractions(folder, convert):
    objects = {"ref": [], "bbox": [[0.1, 0.2, 0.3, 0.4]], "bbox_type": "norm1"}
    line = said("<image>where?", "<bbox>", images=["a.png"], objects=objects)
    ((record,), _) = convert(Swift(source="refcoco"), write(folder, line))
    assert record["boxes"] == [{"image": 0, "box": [0.1, 0.2, 0.3, 0.4]}]
    assert record["source"] == "refcoco"


def test_loss_flags_and_placeholders_without_objects_are_kept(folder, convert, texts):
    line = said("what is <bbox>?", "a placeholder")
    line["messages"] += [
        {"role": "user", "content": "and <ref-object>?"},
        {"role": "assistant", "content": "another", "loss": False},
    ]
    ((record,), _) = convert(Swift(), write(folder, line))
    assert [turn.get("loss", True) for turn in record["turns"]] == [True, True, True, False]
    assert texts(record)[0] == "what is <bbox>?"


def test_queries_and_histories_are_read(folder, convert, texts):
    line = {"system": "s", "query": "c", "response": "d", "history": [["a", "b"]]}
    ((record,), _) = convert(Swift(), write(folder, line))
    assert texts(record) == ["s", "a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ({"instruction": "Add.", "input": "1 + 1", "output": "2"}, ["Add.\n1 + 1", "2"]),
        ({"instruction": "Who?", "context": "", "response": "Ann"}, ["Who?", "Ann"]),
        ({"system_prompt": "", "question": "Who?", "response": "Ann"}, ["Who?", "Ann"]),
    ],
)
def test_text_sets_of_single_questions_are_read(folder, convert, texts, line, found):
    ((record,), rejected) = convert(Swift(), write(folder, line))
    assert rejected == [] and texts(record) == found and record["images"] == []


def test_images_may_be_base64(folder, convert):
    data = base64.b64encode(b"png").decode()
    images = [f"data:image/png;base64,{data}", {"bytes": data, "path": None}, {"path": "a.jpg"}]
    line = said("<image><image><image>", "x", images=images)
    ((record,), _) = convert(Swift(), write(folder, line))
    assert record["images"] == [b"png", b"png", (folder / "a.png").read_bytes()]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"objects": {"bbox": [[1, 2, 3, 4]] * 2}}, "1 times <bbox> for 2 of them"),
        ({"objects": {"bbox": [[1, 2, 3]]}}, "expected (x0, y0, x1, y1) or (x, y)"),
        ({"objects": {"bbox": [[1, 2, 900, 4]]}}, "outside of the picture"),
        ({"objects": {"bbox": [[1, 2, 3, 4]], "image_id": [1]}}, "in image_id 1 of 1 images"),
        ({"objects": {"bbox": [[1, 2, 3, 4]], "image_id": [0, 0]}}, "2 image_id for 1 bbox"),
        ({"objects": {"bbox": [[1, 2, 3, 4]], "bbox_type": "x"}}, "expected real or norm1"),
        ({"videos": ["a.mp4"]}, "a conversation with videos"),
        ({"images": ["lost.png"]}, "no such file"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "a turn from 'tool'"),
        ({"messages": 7}, "messages: a int, expected a list"),
    ],
)
def test_other_lines_are_rejected(folder, convert, fields, reason):
    line = said("<image>where?", "<bbox>", images=["a.png"]) | fields
    good = said("a", "b")
    (record,), (rejected,) = convert(Swift(), write(folder, line, good))
    assert record["id"] == "swift.jsonl:2" and reason in rejected.reason
