import json

import pytest

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
