import json

import pytest

from mm1_jax.batch import Text
from mm1_jax.data.chat_formats.mm1 import MM1ChatFormat
from mm1_jax.data.corpora.conversations import ConversationDocument
from mm1_jax.data.grounding import Coordinates
from mm1_jax.data.ingest.formats.llava import Llava

TURNS = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]


def conversation(turns=TURNS, **fields):
    return {"id": "x", "conversations": turns} | fields


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "ab":
        (tmp_path / "images" / name).write_bytes(name.encode())
    (tmp_path / "images" / "empty").write_bytes(b"")
    return tmp_path


def write(folder, values, name="llava.json"):
    (folder / name).write_text(json.dumps(values))
    return folder / name


def test_turns_keep_their_order_and_get_our_roles(folder, convert):
    turns = [{"from": "system", "value": "Be brief."}, *TURNS]
    values = [
        conversation(turns, image="images/a"),
        # Ids repeat in LLaVA's own mixture, too.
        conversation([{"from": "human", "value": "Hi"}, TURNS[1]], id="x"),
        conversation([TURNS[0], TURNS[1]] * 2, image=["images/a", "images/b"]),
    ]
    write(folder, values)
    records, rejected = convert(Llava(), folder)
    assert rejected == []
    assert records[0] == {
        "id": "llava.json:0",
        "images": [b"a"],
        "turns": [
            {"role": "system", "text": "Be brief."},
            {"role": "user", "text": "<image>\nWhat is it?"},
            {"role": "assistant", "text": "A cat."},
        ],
        "source_id": "x",
    }
    assert [record["images"] for record in records[1:]] == [[], [b"a", b"b"]]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (conversation(), "1 times <image> for 0 images"),
        (conversation(image="images/lost"), "'images/lost': there is no such file"),
        (conversation(image="images/empty"), "it is empty"),
        (conversation(image="../secret"), "lies outside"),
        (conversation(image={}), "is not the name of a file"),
        (conversation(image=[None]), "is not the name of a file"),
        (conversation(TURNS[:1], image="images/a"), "no answer"),
        (conversation([*TURNS[:1], {"from": "gpt", "value": " "}], image="images/a"), "no answer"),
        (conversation([{"from": "dog", "value": "x"}]), "a turn from 'dog'; expected one of human"),
        (conversation([{"from": ["gpt"], "value": "x"}]), "a turn from"),
        (conversation([{"from": "gpt"}]), "an answer without a question"),
        (conversation([{"from": "gpt", "value": 7}]), "a int, expected a string"),
        (conversation(["x"]), "a str, expected a JSON object"),
        ({"id": "x"}, "no conversations"),
        ([], "a list, expected a JSON object"),
        (None, "a NoneType, expected a JSON object"),
    ],
)
def test_an_entry_that_is_not_a_conversation_is_rejected_with_the_reason(
    folder, convert, value, reason
):
    (folder.parent / "secret").write_bytes(b"secret")
    write(folder, [value, conversation(image="images/b")])
    (record,), (rejected,) = convert(Llava(), folder)
    assert record["id"] == "llava.json:1"
    assert rejected.id == "llava.json:0" and reason in rejected.reason


def test_json_lines_are_read_like_a_json_list(folder, convert):
    lines = [json.dumps(conversation(image=f"images/{name}")) for name in "ab"]
    (folder / "a.jsonl").write_text("\n".join([lines[0], "{", lines[1]]))
    records, (rejected,) = convert(Llava(), folder)
    assert [record["id"] for record in records] == ["a.jsonl:1", "a.jsonl:3"]
    assert rejected.id == "a.jsonl:2"


def test_other_json_files_in_the_folder_are_ignored(folder, convert):
    write(folder, [conversation(image="images/a")])
    write(folder, {"license": "x"}, "about.json")
    write(folder, [{"url": "x"}], "urls.json")
    assert [unit.path.name for unit in Llava().units(folder)] == ["llava.json"]
    with pytest.raises(ValueError, match="expected JSON of LLaVA"):
        Llava().units(folder / "about.json")


def test_pictures_may_be_in_another_folder(folder, convert):
    path = write(folder, [conversation(image="a")])
    ((record,), _) = convert(Llava(images=str(folder / "images")), path)
    assert record["images"] == [b"a"]


def test_real_conversations_equal_the_parsed_json(test_data, convert):
    source = test_data / "formats" / "llava_json"
    records, rejected = convert(Llava(), source)
    values = json.loads((source / "llava.json").read_text())
    assert (len(values), rejected) == (17, [])
    for record, value in zip(records, values, strict=True):
        assert record["source_id"] == value["id"]
        names = [value["image"]] if "image" in value else []
        assert record["images"] == [(source / name).read_bytes() for name in names]
        assert [(turn["role"], turn["text"]) for turn in record["turns"]] == [
            ({"human": "user", "gpt": "assistant"}[turn["from"]], turn["value"])
            for turn in value["conversations"]
        ]
    assert sum(not record["images"] for record in records) == 1


def test_a_missing_turn_rejects_no_other_conversation(folder, convert):
    turns = [None, *TURNS, {"from": "human", "value": "and?"}, {"from": "gpt", "value": None}]
    path = folder / "llava.json"
    path.write_text(json.dumps([conversation(turns, image="images/a")]))
    ((record,), _) = convert(Llava(), path)
    assert [turn["text"] for turn in record["turns"]] == [turn["value"] for turn in TURNS]


@pytest.mark.parametrize("extension", [".png", ".gif", ".JPG", ".jpeg"])
def test_an_image_may_have_another_extension_than_its_name(folder, convert, extension):
    (folder / "images" / f"book{extension}").write_bytes(b"cover")
    path = write(folder, [conversation(image="images/book.jpg")])
    ((record,), _) = convert(Llava(), path)
    assert record["images"] == [b"cover"]


def test_pairs_of_m4_keep_their_tags_in_the_middle_of_a_turn(folder, convert):
    turns = [
        {"from": "human", "value": "Source: <image>\nTarget: <image>\nWhat changed?"},
        {"from": "gpt", "value": "The sky."},
    ]
    value = {
        "sample_id": "m4_7",
        "image": ["images/a", "images/b"],
        "conversations": turns,
        "choice_list": None,
        "metadata": {"dataset": "spot_the_diff", "question_type": "open-ended"},
    }
    ((record,), _) = convert(Llava(), write(folder, [value]))
    assert record["source_id"] == "m4_7" and record["source"] == "spot_the_diff"
    assert record["images"] == [b"a", b"b"]
    assert [turn["text"] for turn in record["turns"]] == [turn["value"] for turn in turns]


def test_text_rows_of_llava_have_a_literal_tag_and_a_blank_model(folder, convert, texts):
    turns = [
        {"from": "human", "value": "Is <image> a tag of HTML?"},
        {"from": "gpt", "value": "Of SVG, <image> is."},
    ]
    value = {"id": "t", "model": "", "conversations": turns}
    ((record,), _) = convert(Llava(), write(folder, [value]))
    assert texts(record) == [turn["value"] for turn in turns] and record["images"] == []


def test_videos_are_rejected(folder, convert):
    _, (rejected,) = convert(Llava(), write(folder, [conversation(video="a.mp4")]))
    assert rejected.reason == "a conversation about a video"


def test_messages_of_roles_are_read_like_conversations(folder, convert, texts):
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "A cat.", "loss": False},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    value = {"images": ["images/a"], "messages": messages, "source": "x"}
    ((record,), _) = convert(Llava(), write(folder, [value]))
    assert texts(record) == ["<image>\nWhat?", "A cat.", "Sure?", "Yes."]
    assert record["turns"][1]["loss"] is False and record["source"] == "x"


OCR = "Reference OCR token: M, 17"


def test_lines_of_ocr_tokens_can_be_dropped(folder, convert, texts, counts):
    turns = [{"from": "human", "value": f"<image>\nA caption?\n{OCR}"}, TURNS[1]]
    path = write(folder, [conversation(turns, image="images/a")])
    ((kept,), _) = convert(Llava(), path)
    assert texts(kept)[0] == f"<image>\nA caption?\n{OCR}"
    ((record,), _) = convert(Llava(ocr_tokens=False), path)
    assert texts(record)[0] == "<image>\nA caption?"
    assert counts(Llava(ocr_tokens=False), path) == {"ocr_token_lines": 1}


@pytest.mark.parametrize(
    ("boxes", "text", "fields", "left", "box"),
    [
        # 200 x 100 pixels, padded to a square: 50 pixels above and below.
        (
            "llava",
            "It is at [0.25, 0.50, 0.75, 0.75].",
            {},
            "It is at <box>.",
            [0.25, 0.5, 0.75, 1],
        ),
        ("fractions", "[0.25,0.50,.75,1]", {}, "<box>", [0.25, 0.5, 0.75, 1]),
        (
            *("internvl", "<ref>cat</ref><box>[[250, 500, 750, 1000]]</box>", {}),
            *("cat <box>", [0.25, 0.5, 0.75, 1]),
        ),
        (
            *("qwen", '{"bbox_2d": [7, 14, 21, 28], "label": "cat"}'),
            {"resized_width": 28, "resized_height": 28},
            *('{"bbox_2d": <box>, "label": "cat"}', [0.25, 0.5, 0.75, 1]),
        ),
        ("llava", "a list [0, 1, 1, 1]", {}, "a list [0, 1, 1, 1]", None),
        ("none", "[0.25, 0.50, 0.75, 0.75]", {}, "[0.25, 0.50, 0.75, 0.75]", None),
    ],
)
def test_boxes_of_a_grounding_set_become_placeholders(
    folder, convert, picture, texts, boxes, text, fields, left, box
):
    (folder / "wide.png").write_bytes(picture(200, 100))
    turns = [TURNS[0], {"from": "gpt", "value": text}]
    path = write(folder, [conversation(turns, image="wide.png", **fields)])
    ((record,), _) = convert(Llava(boxes=boxes), path)
    assert texts(record)[1] == left
    if box is None:
        assert "boxes" not in record
    else:
        assert record["boxes"] == [{"image": 0, "box": pytest.approx(box)}]


def test_a_box_is_in_the_image_named_before_it(folder, convert, picture):
    (folder / "a.png").write_bytes(picture(10, 10))
    turns = [
        {"from": "human", "value": "<image> <image> Is [0.1, 0.1, 0.2, 0.2] in <image>?"},
        {"from": "gpt", "value": "At [0.5, 0.5, 0.6, 0.6]"},
    ]
    path = write(folder, [conversation(turns, image=["a.png"] * 3)])
    ((record,), _) = convert(Llava(boxes="llava"), path)
    assert [box["image"] for box in record["boxes"]] == [1, 2]


@pytest.mark.parametrize(
    ("boxes", "text", "reason"),
    [
        ("llava", "[0.25, 0.10, 0.75, 0.50]", "outside of the picture"),
        ("fractions", "[0.9, 0.1, 0.2, 0.3]", "expected x0 <= x1"),
        ("internvl", "<box>[[1, 2]</box>", "a box that is not a list of numbers"),
        ("internvl", "<box>[[1, 2, 3, 4]]", "a box without an end"),
        ("internvl", "<box>[[1, 2, 3, 4000]]</box>", "outside of the picture"),
        ("qwen", '"bbox_2d": [1, 2, 3, 4]', "without its size"),
    ],
)
def test_boxes_that_cannot_be_converted_reject_the_entry(
    folder, convert, picture, boxes, text, reason
):
    (folder / "wide.png").write_bytes(picture(200, 100))
    turns = [TURNS[0], {"from": "gpt", "value": text}]
    _, (rejected,) = convert(
        Llava(boxes=boxes), write(folder, [conversation(turns, image="wide.png")])
    )
    assert reason in rejected.reason


def test_boxes_need_a_picture_whose_size_can_be_read(folder, convert):
    turns = [TURNS[0], {"from": "gpt", "value": "[0.1, 0.1, 0.2, 0.2]"}]
    path = write(folder, [conversation(turns, image="images/a")])
    _, (rejected,) = convert(Llava(boxes="llava"), path)
    assert "the size of the image" in rejected.reason
    with pytest.raises(ValueError, match="boxes='pixels'; expected one of none, llava"):
        Llava(boxes="pixels")


@pytest.mark.parametrize(
    ("boxes", "text"),
    [
        ("llava", "[0.10, 0.30, 0.50, 0.60]"),
        ("fractions", "[0.1, 0.1, 0.5, 0.7]"),
        ("internvl", "<box>[[100, 100, 500, 700]]</box>"),
    ],
)
def test_one_box_is_written_alike_whatever_the_convention_of_its_set(
    folder, convert, picture, boxes, text
):
    (folder / "wide.png").write_bytes(picture(200, 100))
    turns = [TURNS[0], {"from": "gpt", "value": f"A cat at {text}."}]
    path = write(folder, [conversation(turns, image="wide.png")])
    ((record,), _) = convert(Llava(boxes=boxes), path)
    to_document = ConversationDocument.default_config().set(
        chat_format=MM1ChatFormat.default_config(), coordinates=Coordinates.default_config()
    )
    segments = to_document.instantiate()(record).segments
    (answer,) = [each.text for each in segments if isinstance(each, Text) and each.scored]
    assert answer.strip() == "A cat at [100, 100, 500, 699]."
