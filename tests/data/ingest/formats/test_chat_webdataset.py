import io
import json
import tarfile

import pytest

from mm1_jax.data.ingest.formats.chat_webdataset import ChatWebdataset

TURNS = [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "A cat."}]


@pytest.fixture
def shard(tmp_path):
    def shard(**samples):
        with tarfile.open(tmp_path / "0.tar", "w") as archive:
            for key, members in samples.items():
                for extension, data in members.items():
                    data = data if isinstance(data, bytes) else json.dumps(data).encode()
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        return tmp_path / "0.tar"

    return shard


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (TURNS, ["<image>\nWhat?", "A cat."]),
        ({"messages": TURNS}, ["<image>\nWhat?", "A cat."]),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "A"}]},
            ["Hi", "A"],
        ),
        (
            {"context": "What?", "answers": ["cat", "dog"]},
            ["What?\nAnswer the question using a single word or phrase.", "cat"],
        ),
        (
            {"context": "What?", "choices": ["dog", "cat"], "correct_choice_idx": 1},
            [
                "What?\nA. dog\nB. cat\n"
                "Answer with the option's letter from the given choices directly.",
                "B",
            ],
        ),
        ({"caption": "A cat."}, ["Describe the image in detail.", "A cat."]),
    ],
)
def test_a_sample_is_a_conversation(shard, convert, texts, value, said):
    ((record,), rejected) = convert(ChatWebdataset(), shard(a={"jpg": b"1", "json": value}))
    assert rejected == [] and texts(record) == said
    assert record["images"] == [b"1"] and record["source_id"] == "a"


def test_a_sample_may_have_no_image_or_a_text_in_place_of_json(shard, convert, texts):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = shard(a={"json": chat}, b={"jpg": b"1", "txt": b"A dog."}, c={"jpg": b"2"})
    (chat, caption), (rejected,) = convert(ChatWebdataset(prompt="Describe."), path)
    assert chat["images"] == [] and texts(caption) == ["Describe.", "A dog."]
    assert rejected.reason == "neither .json nor .txt"


def test_images_are_in_the_order_of_their_numbers(shard, convert):
    turns = [{"role": "user", "content": "<image>" * 3}, TURNS[1]]
    images = {f"img{n}.jpg": f"{n}".encode() for n in (10, 9, 1)}
    ((record,), _) = convert(ChatWebdataset(), shard(a=images | {"json": turns}))
    assert record["images"] == [b"1", b"9", b"10"]


def test_a_packed_sample_is_one_record_per_place(shard, convert, texts):
    packed = {
        "images": [["img0.jpg"], "img1.jpg", []],
        "prompts": [["a?"], "b?", ["c?", "d?"]],
        "captions": [["a"], "b", ["c", "d"]],
    }
    images = {"img0.jpg": b"0", "img1.jpg": b"1"}
    path = shard(a=images | {"json": packed})
    records, rejected = convert(ChatWebdataset(source="ov"), path)
    assert rejected == []
    assert [record["id"] for record in records] == ["0.tar:a:0", "0.tar:a:1", "0.tar:a:2"]
    assert [record["images"] for record in records] == [[b"0"], [b"1"], []]
    assert texts(records[2]) == ["c?", "c", "d?", "d"]


def test_a_bad_place_of_a_packed_sample_rejects_no_other(shard, convert):
    packed = {
        "images": ["img0.jpg", "img7.jpg", "img0.jpg"],
        "prompts": ["a?", "b?", ["c?"]],
        "captions": ["a", "b", ["c", "d"]],
    }
    other = {"images": [], "prompts": ["a"], "captions": []}
    path = shard(a={"img0.jpg": b"0", "json": packed}, b={"json": other})
    (record,), rejected = convert(ChatWebdataset(), path)
    assert record["id"] == "0.tar:a:0"
    assert [(item.id, item.reason) for item in rejected] == [
        ("0.tar:a:1", "image 'img7.jpg' is not in the sample"),
        ("0.tar:a:2", "1 prompts beside 2 captions"),
        ("0.tar:b", "1 prompts, 0 captions and 0 images"),
    ]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("x", "a str, expected a list of turns or a JSON object"),
        ({}, "none of messages, conversations, texts, context, question, caption"),
        ({"context": "?", "choices": ["a"], "correct_choice_idx": 1}, "choice 1 of 1"),
        ({"context": "?", "answers": []}, "no answer that is not blank"),
        ([{"role": "user", "content": "<image><image>"}, TURNS[1]], "2 times <image> for 1 images"),
    ],
)
def test_other_samples_are_rejected(shard, convert, value, reason):
    _, (rejected,) = convert(ChatWebdataset(), shard(a={"jpg": b"1", "json": value}))
    assert rejected.reason == reason
